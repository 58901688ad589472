"use strict";
// Exchanges the token of a link for a session. The token stands behind the #, which a browser sends to nobody.

async function enter() {
  const token = location.hash.slice(1);
  history.replaceState(null, "", "enter"); // so that the browser's history does not keep it
  const answer = await fetch("session", { method: "POST", body: token, headers: { "Content-Type": "text/plain" } });
  if (answer.status !== 204) throw new Error(String(answer.status));
  location.replace("./");
}
enter().catch(() => {
  document.getElementById("words").textContent = "This link is used or older than a minute. For a new one, type: pluralllm page";
});
