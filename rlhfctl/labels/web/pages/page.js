// The labelling page: keys, ranking by clicks, and what to do when an answer does not arrive.
// Answers are sent by htmx, as the attributes in desk.html say. Text of models is never handled here.
"use strict";

(() => {
  // A second tap of a double tap would answer a question that nobody has read: a new question rests so long.
  const REST_MS = 250;
  const SAID_MS = 4000;
  const byId = (id) => document.getElementById(id);
  let shownAt = performance.now(); // scripts run once the page is there
  let chosen = []; // of a ranking: {place, same}, the best first
  let pressed = null; // the button that was pressed last
  let again = null; // sends once more what failed

  // ------------------------------------------------------------ ranking

  function ranks() {
    const found = new Map();
    let rank = -1;
    for (const { place, same } of chosen) {
      rank += same && rank >= 0 ? 0 : 1;
      found.set(place, rank);
    }
    return found;
  }

  function pick(button) {
    const place = Number(button.dataset.place);
    const at = chosen.findIndex((one) => one.place === place);
    if (at >= 0) {
      chosen.splice(at, 1);
    } else {
      chosen.push({ place, same: byId("same").getAttribute("aria-pressed") === "true" });
    }
    byId("same").setAttribute("aria-pressed", "false");
    drawRanking(at < 0);
  }

  function drawRanking(mayFocus) {
    const buttons = [...document.querySelectorAll("#desk .pick")];
    const found = ranks();
    for (const button of buttons) {
      const place = Number(button.dataset.place);
      const rank = found.get(place);
      const name = `response ${place + 1}`;
      const is = rank !== undefined;
      button.setAttribute("aria-pressed", String(is));
      button.setAttribute("aria-label", is ? `${name} is number ${rank + 1}; take it back` : `Choose ${name} next`);
      button.querySelector(".rank").textContent = is ? String(rank + 1) : "choose";
      button.closest(".card").classList.toggle("chosen", is);
    }
    const whole = found.size === buttons.length;
    const send = byId("send");
    send.disabled = !whole;
    send.value = whole ? buttons.map((_, place) => found.get(place)).join(" ") : "";
    byId("same").disabled = whole || found.size === 0;
    if (whole && mayFocus) {
      send.focus({ preventScroll: true });
    }
  }

  // ------------------------------------------------------------ clicks and keys

  document.addEventListener(
    "click",
    (event) => {
      const button = event.target.closest("button");
      if (button === null) {
        return;
      }
      if (button.hasAttribute("data-answer")) {
        if (event.detail > 1 || performance.now() - shownAt < REST_MS) {
          event.preventDefault();
          event.stopImmediatePropagation();
          return;
        }
        pressed = button;
      } else if (button.classList.contains("pick")) {
        pick(button);
      } else if (button.id === "same") {
        button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true"));
      } else if (button.id === "again" && again !== null) {
        again();
      }
    },
    true,
  );

  // htmx sends the forms; before it is ready nothing may leave the page.
  document.addEventListener("submit", (event) => event.preventDefault());

  document.addEventListener("keydown", (event) => {
    if (event.repeat || event.ctrlKey || event.altKey || event.metaKey || event.isComposing) {
      return;
    }
    if (event.target.matches("input, textarea")) {
      if (event.key === "Escape" && event.target.matches("textarea")) {
        event.target.blur();
      }
      return;
    }
    if (event.key === "Enter" && event.target.closest("button, a, summary")) {
      return; // it presses what has the focus
    }
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const found = [...document.querySelectorAll("#desk [data-keys]")].find((one) =>
      one.dataset.keys.split(" ").includes(key),
    );
    if (found === undefined || found.matches(":disabled")) {
      return;
    }
    event.preventDefault();
    if (found.tagName === "SUMMARY") {
      found.parentElement.open = true;
      found.parentElement.querySelector("textarea").focus();
    } else {
      found.click();
    }
  });

  // The note is ready to be written in as soon as it is opened.
  document.addEventListener(
    "toggle",
    (event) => {
      if (event.target.matches("details.note") && event.target.open && event.target.contains(document.activeElement)) {
        event.target.querySelector("textarea").focus();
      }
    },
    true,
  );

  // ------------------------------------------------------------ answers of the server

  // The last message of a conversation is the one that is answered: it is in view, and those before it are above.
  function showLast() {
    const box = document.querySelector(".prompt .scroll");
    const last = box && [...box.querySelectorAll(".turn")].at(-1);
    if (last) {
      box.scrollTop += last.getBoundingClientRect().top - box.getBoundingClientRect().top;
    }
  }

  document.addEventListener("htmx:afterSwap", (event) => {
    if (event.detail.target.id !== "desk") {
      return;
    }
    shownAt = performance.now();
    chosen = [];
    showLast();
    byId("task")?.focus({ preventScroll: true });
  });

  // What was said goes after a while; a screen reader has read it by then.
  let going = 0;
  document.addEventListener("htmx:oobAfterSwap", () => {
    clearTimeout(going);
    going = setTimeout(() => (byId("said").textContent = ""), SAID_MS);
  });

  document.addEventListener("htmx:beforeRequest", () => {
    byId("failed").hidden = true;
    byId("said").textContent = "";
  });

  function failed(event, why) {
    const sender = event.detail.elt;
    const button = pressed;
    again = sender.matches("textarea")
      ? () => window.htmx.trigger(sender, "change")
      : sender.matches("form:not(#question)")
        ? () => sender.requestSubmit()
        : () => button?.click();
    byId("why").textContent = why;
    byId("failed").hidden = false;
  }

  const GONE = "Not saved: the server does not answer. Is it still running? Send again when it is; an answer counts once.";
  document.addEventListener("htmx:sendError", (event) => failed(event, GONE));
  document.addEventListener("htmx:timeout", (event) => failed(event, GONE));
  document.addEventListener("htmx:responseError", (event) => {
    const { xhr } = event.detail;
    const isText = (xhr.getResponseHeader("content-type") || "").startsWith("text/plain");
    failed(event, isText && xhr.responseText ? xhr.responseText : `Not saved: the server says ${xhr.status}.`);
  });

  showLast();
})();
