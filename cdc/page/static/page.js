"use strict";

// The server sends each part of the page again when it has changed. This script puts it in the place of the old one, node by node, so
// that focus, selection and scrolling stay where they are.

function morph(was, is) {
  if (was.isEqualNode(is)) return;
  if (was.nodeType !== is.nodeType || was.nodeName !== is.nodeName) {
    was.replaceWith(is);
    return;
  }
  if (was.nodeType === Node.TEXT_NODE) {
    was.data = is.data;
    return;
  }
  for (const { name } of [...was.attributes]) {
    if (!is.hasAttribute(name) && name !== "open") was.removeAttribute(name);
  }
  for (const { name, value } of is.attributes) {
    if (was.getAttribute(name) !== value) was.setAttribute(name, value);
  }
  const before = [...was.childNodes];
  const after = [...is.childNodes];
  after.forEach((node, i) => (before[i] ? morph(before[i], node) : was.append(node)));
  before.slice(after.length).forEach((node) => node.remove());
}

const link = document.getElementById("link");

function say(text) {
  link.textContent = text;
  link.hidden = text === "";
  document.body.classList.toggle("cut", text !== "");
}

function connect() {
  const source = new EventSource(document.body.dataset.live);

  source.addEventListener("part", (event) => {
    const { id, html } = JSON.parse(event.data);
    const part = document.getElementById(id);
    if (!part) return;
    const is = part.cloneNode(false);
    is.innerHTML = html;
    morph(part, is);
    say("");
  });

  source.addEventListener("error", () => {
    say("The relay does not answer, or too many pages are open. This page shows what was true before, and goes on by itself.");
    if (source.readyState === EventSource.CLOSED) setTimeout(connect, 3000); // the browser itself gives up after an answer that is no stream
  });
}

connect();
