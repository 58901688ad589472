"use strict";
// Exchanges the token of a link for a session. The token stands behind the #, which a browser sends to nobody.

const USED = "This link is used or older than a minute. For a new one, type: pluralllm page";
const FAILED = "The coordinator did not open the page. Load this page again within the minute, or type for a new link: pluralllm page";

async function enter() {
  const token = location.hash.slice(1);
  history.replaceState(null, "", "enter"); // so that the browser's history does not keep it
  let status = 0; // no answer
  try {
    status = (await fetch("session", { method: "POST", body: token, headers: { "Content-Type": "text/plain" } })).status;
  } catch { /* the words below say it */ }
  if (status === 204) { location.replace("./"); return; }
  if (status !== 401) history.replaceState(null, "", `enter#${token}`); // the link is not used up
  document.getElementById("words").textContent = status === 401 ? USED : `${FAILED} (${status ? `status ${status}` : "no answer"})`;
}
enter();
