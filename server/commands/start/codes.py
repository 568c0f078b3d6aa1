"""What each error code of an answer means for an operator, and what to do about it."""

from typing import NamedTuple


class Advice(NamedTuple):
    """What a code means, and what to do."""

    meaning: str
    remedy: str


CODES = {
    "api_key_expired": Advice(
        "The key's time is over.", "`secateur keys list FILE` shows when; `secateur keys rotate` makes a new one."
    ),
    "body_too_large": Advice(
        "The request is larger than `max_body`.", "Send less, or raise `max_body` in server.toml."
    ),
    "body_too_slow": Advice(
        "The body did not arrive within the deadline.", "Look at the network and at proxies that buffer uploads."
    ),
    "budget_exceeded": Advice(
        "The skill has used its tokens of the day or month.",
        "`secateur usage LEDGER` shows by what; raise `tokens_per_day` or `tokens_per_month` of the skill, or wait as "
        "`Retry-After` says.",
    ),
    "build_running": Advice(
        "Another knowledge is being built.",
        "Wait until the page shows that it is done; one is built at a time.",
    ),
    "context_length_exceeded": Advice(
        "Prompt and reply do not fit the model's context.",
        "Shorten the messages, lower `max_tokens`, or raise `context` in server.toml up to what the model takes.",
    ),
    "conversations_unavailable": Advice(
        "The database of conversations cannot be read or written.",
        "Look at the disk, or at the PostgreSQL server; `secateur doctor CONFIG.toml` tries it.",
    ),
    "conversations_unkept": Advice(
        "Conversations cannot be shown: they are in memory alone, or cannot be decrypted.",
        'Set `conversation_storage = "database"`, and name the file that has the key in `conversation_key`.',
    ),
    "document_refused": Advice(
        "The name of an uploaded document is not allowed.",
        "Rename it: letters, digits, spaces, `.`, `_` and `-`, and one of the known endings.",
    ),
    "documents_unwritable": Advice(
        "Uploaded documents cannot be written.",
        "Look at the disk, and at the rights of the folder `knowledge` in the folder of the skills.",
    ),
    "experiment_invalid": Advice(
        "These two revisions cannot be compared.",
        "Name another revision than the published one, with the same access and limits, and a share between 0 and 1.",
    ),
    "experiment_running": Advice(
        "Another experiment with this skill runs.",
        "Decide or stop it: `secateur skills experiment decide NAME@NUMBER --server SERVER.toml`.",
    ),
    "feedback_unavailable": Advice(
        "The file of ratings cannot be read or written.", "Look at the disk and at the rights of `feedback`."
    ),
    "gate_failed": Advice(
        "The skill's `[gate]` does not let the revision be published: it was not evaluated, or scores worse.",
        "Evaluate it with `secateur evaluate --skill NAME@NUMBER --task FILE --server SERVER.toml`, or change it.",
    ),
    "host_not_allowed": Advice(
        "The admin listener has no keys, and the request names a host.",
        "Open it by its IP address, or set `admin_keys` or `[admin_login]`.",
    ),
    "idempotency_key_in_use": Advice(
        "A request with the same Idempotency-Key is under way.", "Wait for it; a new request needs a new key."
    ),
    "idempotency_key_reused": Advice(
        "The Idempotency-Key was sent with another request before.", "Make a new key for each new request."
    ),
    "idempotency_reply_gone": Advice(
        "The request was answered, but its text is not kept any more.", "Send it with a new key to have it answered."
    ),
    "identity_invalid": Advice(
        "The visitor's signed identity is missing, expired, or not signed by the key of the skill's `[identity]`.",
        "Compare key, issuer and audience with those of the site that signs it, and both clocks.",
    ),
    "invalid_api_key": Advice(
        "No such key: misspelt, revoked, or of another server.",
        "`secateur keys list FILE` shows which are valid; `keys` in server.toml must name that file.",
    ),
    "invalid_body": Advice("The body is not what the path expects.", "The message names the field."),
    "key_budget_exceeded": Advice(
        "The key has used its own tokens of the day or month.",
        "`secateur usage LEDGER --by key` shows it; `secateur keys limit` changes it.",
    ),
    "key_not_allowed": Advice(
        "The key is valid, but does not open this skill or path.",
        "`secateur keys list FILE` shows what it opens; make one with `secateur keys create --skill NAME`.",
    ),
    "key_rate_limited": Advice(
        "The key's own requests or tokens a minute are used up.",
        "Wait as `Retry-After` says, or change them by `secateur keys limit`.",
    ),
    "ledger_unavailable": Advice(
        "The ledger cannot be written, and what cannot be counted is not served.",
        "Look at the disk of `ledger`, or at the PostgreSQL server; `secateur doctor CONFIG.toml` tries it.",
    ),
    "login_code": Advice("The login's code was used or is too old.", "Sign in again, in one window."),
    "login_denied": Advice("The login provider refused.", "Ask who runs it; its own log has the reason."),
    "login_required": Advice("Nobody is signed in.", "Open /admin/login, or send an admin key."),
    "login_role": Advice(
        "The account is in no group of `viewers` or `operators`.",
        "Add its group to `[admin_login]`, or look at `claim`, which names where groups are in the ID token.",
    ),
    "login_state": Advice(
        "The answer belongs to no login of this browser.", "Begin at /admin/login; allow its cookie, and check `url`."
    ),
    "login_token": Advice(
        "The ID token does not hold for this server.", "Compare `issuer` and `client_id`, and both clocks."
    ),
    "login_unavailable": Advice(
        "The login provider does not answer, or not as OpenID Connect says.",
        "Open ISSUER/.well-known/openid-configuration from the server's machine.",
    ),
    "method_not_allowed": Advice("The path exists, with another method.", "The message lists the allowed ones."),
    "missing_api_key": Advice(
        "The request has no key.", "Send `Authorization: Bearer KEY`; `secateur keys create` makes one."
    ),
    "model_not_found": Advice(
        "No skill has this name or alias.", "`model` is a skill's name: GET /v1/models lists what the key opens."
    ),
    "no_documents": Advice(
        "There is nothing to build a knowledge from.",
        "Upload a document first.",
    ),
    "no_experiment": Advice(
        "No experiment runs with this skill.", "Start one on the page, or by `secateur skills experiment start`."
    ),
    "no_key_file": Advice(
        "The settings name no file of API keys.",
        'Set `keys = "keys.json"` in server.toml, and start the server again.',
    ),
    "no_session": Advice("There is no session to end.", "Only the widget has sessions; a key has none."),
    "not_found": Advice("No such path or object.", "Compare the path with the docs' page `OpenAI's clients`."),
    "not_stored": Advice(
        "The request refers to a response that this server does not store.",
        "Send the whole history in `input` instead of references.",
    ),
    "origin_not_allowed": Advice(
        "The page's origin is not in the skill's `origins`.",
        "Add it exactly as browsers send it: scheme, host and port, without a path; then reload.",
    ),
    "overloaded": Advice(
        "The queue is full, or the server is stopping.",
        "Retry as `Retry-After` says; raise `slots` or `max_waiting`, or add a replica.",
    ),
    "rate_limited": Advice(
        "The skill's limit of requests, tokens, sessions or concurrent replies is reached.",
        "Wait as `Retry-After` says, or raise the limit in the skill's file.",
    ),
    "read_only": Advice(
        "The skills manager of this server only shows skills.", 'Set `skill_revisions = "edit"` in server.toml.'
    ),
    "reply_running": Advice("The conversation has a reply under way.", "Wait for its end, or stop it."),
    "reply_unknown": Advice(
        "The conversation has no such reply, or it is not the latest.", "Reload the page: it shows what is there."
    ),
    "revisions_unavailable": Advice(
        "The database of skills' revisions cannot be read or written.",
        "Look at the disk, or at the PostgreSQL server; `secateur doctor CONFIG.toml` tries it.",
    ),
    "role_not_allowed": Advice(
        "The account's role does not allow this.",
        "Its group must be in `editors`, `publishers` or `operators` of `[admin_login]`; the message says which.",
    ),
    "session_expired": Advice("The visitor's session has ended.", "The widget opens a new one by itself."),
    "session_refused": Advice(
        "The page may not open a session of this skill.",
        "Compare its origin with `origins`, and the site key, if the skill has `site_keys`.",
    ),
    "skills_invalid": Advice(
        "The reload found a mistake, so the old skills stay.", "The message has it; `secateur skills check` too."
    ),
    "tokens_per_minute_exceeded": Advice(
        "The request alone needs more tokens than the limit allows in a minute.",
        "Shorten it, lower `max_tokens`, or raise `tokens_per_minute`.",
    ),
    "too_many_documents": Advice(
        "A skill has too many documents, or too large ones.",
        "Delete some, or build the knowledge by `secateur knowledge build` and name its directory.",
    ),
    "unknown_parameter": Advice(
        "The request has a field that this server does not know.",
        'Correct its name, or set `unknown_fields = "ignore"` in the skill.',
    ),
    "unsupported_by_engine": Advice(
        "The skill's model runs on other machines, whose protocol lacks what was asked for.",
        "Leave the field out, or serve the skill from a model on this machine.",
    ),
    "unsupported_encoding": Advice("The body is compressed in a way that is not read.", "Send gzip, or none."),
    "unsupported_parameter": Advice(
        "The field would change the reply, and is not supported.", "Leave it out; the message says what is supported."
    ),
    "unsupported_value": Advice("The value is not supported.", "The message names the values that are."),
}
