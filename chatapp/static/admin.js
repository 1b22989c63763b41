// Asks before a change that is hard to undo, and copies a new key. All else works without.

for (const form of document.querySelectorAll("form[method=post]")) {
  let isSent = false; // a double click creates one key
  form.addEventListener("submit", (event) => {
    if (isSent || (form.dataset.confirm && !confirm(form.dataset.confirm))) event.preventDefault();
    else isSent = true;
  });
}
  addEventListener("pageshow", () => { isSent = false; }); // back to this page, after an error

for (const button of document.querySelectorAll("[data-copy]")) {
  if (!navigator.clipboard) continue; // without TLS
  button.hidden = false;
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(document.getElementById(button.dataset.copy).textContent);
    button.textContent = "Copied";
  });
}
