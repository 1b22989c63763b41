// Asks before a change that is hard to undo, sends each form once, copies a new key, and keeps the view of decisions up to
// date. All else works without.

for (const form of document.querySelectorAll("form[method=post]")) {
  let isSent = false; // a double click creates one key
  form.addEventListener("submit", (event) => {
    const question = form.dataset.confirm;
    if (isSent || (question && !confirm(question))) event.preventDefault();
    else isSent = true;
  });
  form.addEventListener("input", () => { isSent = false; }); // the answer was a download
  addEventListener("pageshow", () => { isSent = false; }); // back to this page, after an error
}

for (const button of document.querySelectorAll("[data-copy]")) {
  if (!navigator.clipboard) continue; // without TLS
  button.hidden = false;
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(document.getElementById(button.dataset.copy).textContent);
    button.textContent = "Copied";
  });
}

const pace = document.querySelector("[data-refresh]");
if (pace) {
  const button = pace.querySelector("button");
  const status = pace.querySelector("[role=status]");
  let isPaused = false;
  let isAsking = false;
  let timer;

  // What the reader is in stays as it is: a link with the focus, or a selected text.
  const isInUse = (part) =>
    (part !== document.activeElement && part.contains(document.activeElement)) ||
    (!getSelection().isCollapsed && getSelection().containsNode(part, true));

  const refresh = async () => {
    if (isAsking) return;
    let problem = "";
    if (!document.hidden) {
      isAsking = true;
      try {
        const answer = await fetch(location.href, { signal: AbortSignal.timeout(10_000) });
        if (answer.status === 401) {
          status.textContent = "The session has ended. Reload the page to log in.";
          button.hidden = true;
          return;
        }
        if (!answer.ok) throw new Error(answer.status);
        const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
        const parts = [...document.querySelectorAll("[data-part]")];
        const others = [...fresh.querySelectorAll("[data-part]")];
        if (isPaused) return;
        if (others.length !== parts.length) { // the storage went down or is back
          const view = "[data-view]";
          document.querySelector(view).replaceWith(fresh.querySelector(view));
        } else {
          parts.forEach((part, at) => {
            if (!part.isEqualNode(others[at]) && !isInUse(part)) {
              part.replaceChildren(...others[at].childNodes);
            }
          });
        }
      } catch {
        problem = "The server does not answer; trying again.";
      } finally {
        isAsking = false;
      }
    }
    if (isPaused) return;
    if (status.textContent !== problem) status.textContent = problem;
    timer = setTimeout(refresh, 5000);
  };

  button.addEventListener("click", () => {
    isPaused = !isPaused;
    button.textContent = isPaused ? "Continue" : "Pause";
    status.textContent = isPaused ? "Paused" : "";
    clearTimeout(timer);
    if (!isPaused) refresh();
  });
  pace.hidden = false;
  timer = setTimeout(refresh, 5000);
}
