// Polls the skill's totals every two seconds while the page is visible, and sends example questions to the chat.
const cells = document.querySelectorAll("[data-total]");
const freshness = document.querySelector("#freshness");
const usual = freshness.textContent;

async function refresh() {
  try {
    const response = await fetch("/tokens");
    if (!response.ok) throw new Error(`/tokens answered ${response.status}`);
    const totals = await response.json();
    for (const cell of cells) cell.textContent = totals[cell.dataset.total].toLocaleString("en");
    freshness.textContent = usual;
  } catch {
    freshness.textContent = "The server does not answer; the numbers are the last that it gave.";
  }
}

for (const button of document.querySelectorAll(".questions button")) {
  button.addEventListener("click", () => window.SkillChat?.("send", button.textContent));
}
refresh();
setInterval(() => document.hidden || refresh(), 2000);
