// Puts what the server sends in its place. The server has escaped it.
"use strict";
const line = document.getElementById("line");
const events = new EventSource("/-/status/events");
events.addEventListener("open", () => { line.className = "live"; });
events.addEventListener("error", () => { line.className = "lost"; });
events.addEventListener("live", (event) => {
  document.getElementById("live").innerHTML = event.data;
});
