"use strict";
(() => {
  const $ = (selector, within = document) => within.querySelector(selector);
  const $$ = (selector, within = document) => [...within.querySelectorAll(selector)];
  const read = (id) => { const found = document.getElementById(id); return found && JSON.parse(found.textContent); };
  const make = (tag, text, name) => {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    if (name) made.className = name;
    return made;
  };
  const number = (value) => {
    if (value === null || value === undefined) return "-";
    return value !== 0 && Math.abs(value) < 0.001 ? value.toExponential(1) : String(Number(value.toPrecision(3)));
  };
  const signed = (value) => (value > 0 ? "+" : "") + number(value);
  const fill = (select, options) => options.forEach(([value, label]) => {
    const option = make("option", label);
    option.value = value;
    select.append(option);
  });

  // ---------------------------------------------------------------- charts
  const figures = read("figures"), config = read("config");
  const drawn = new WeakSet();
  const waits = (place) => !drawn.has(place) && place.clientWidth > 0 && !place.closest("details:not([open])");
  const draw = (place) => {
    if (!waits(place)) return null;
    drawn.add(place);
    const label = place.getAttribute("aria-label");
    const columns = place.clientWidth < 420 ? 1 : config.legend.columns;  // a narrow legend would be cut off
    return vegaEmbed(place, figures[place.dataset.figure], {
      config: { ...config, legend: { ...config.legend, columns } }, actions: false, renderer: "svg", ast: true, defaultStyle: false, tooltip: { disableDefaultStyle: true },
    }).then(() => {
      // Vega names the place a document of marks; it is a picture with its content in words.
      place.setAttribute("role", "img");
      place.removeAttribute("aria-roledescription");
      place.setAttribute("aria-label", label);
    }).catch((error) => { place.textContent = "This chart cannot be drawn."; console.error(error); });
  };
  const places = $$(".chart");
  const near = new IntersectionObserver((entries) => entries.forEach((entry) => {
    if (entry.isIntersecting && draw(entry.target)) near.unobserve(entry.target);
  }), { rootMargin: "300px" });
  places.forEach((place) => near.observe(place));
  // What is out of sight is drawn while nothing else happens, so that printing finds every chart.
  const idle = window.requestIdleCallback || ((act) => setTimeout(act, 30));
  const next = () => {
    const place = places.find(waits);
    if (place) { Promise.resolve(draw(place)).then(() => idle(next)); } else { document.body.dataset.drawn = "all"; }
  };
  window.addEventListener("load", () => idle(next));
  $$("details").forEach((one) => one.addEventListener("toggle", () => one.open && $$(".chart", one).forEach(draw)));

  // ---------------------------------------------------------------- copy
  $$(".copy").forEach((button) => button.addEventListener("click", () => {
    const code = $("code", button.closest(".code"));
    const done = () => { button.textContent = "Copied"; setTimeout(() => { button.textContent = "Copy"; }, 1500); };
    const select = () => getSelection().selectAllChildren(code);
    if (navigator.clipboard) navigator.clipboard.writeText(code.textContent).then(done, select); else select();
  }));

  // ---------------------------------------------------------------- samples
  const samples = read("samples-data");
  if (samples) {
    const root = $("#sample-table"), form = $("form", root), body = $("tbody", root);
    const field = (name) => form.elements[name];
    const rows = samples.rows.map(([prompt, sample, policy, reference, policyScores, referenceScores, policyLength,
      referenceLength, policyEnded, referenceEnded, source, seed], order) => ({
      prompt: samples.prompts[prompt], sample, policy, reference, policyScores, referenceScores, policyLength,
      referenceLength, policyEnded, referenceEnded, source, seed, order,
      change: policyScores.map((score, judge) => (score === null || referenceScores[judge] === null
        ? null : score - referenceScores[judge])),
    }));
    const filters = [
      ["all", "all pairs", () => true],
      ["win", "policy scores higher", (row, judge) => row.change[judge] > 0],
      ["loss", "policy scores lower", (row, judge) => row.change[judge] < 0],
      ["tie", "equal scores", (row, judge) => row.change[judge] === 0],
      ["same", "equal answers", (row) => row.policy === row.reference],
      ["cut", "policy cut off", (row) => row.policyEnded === false],
      ["empty", "policy empty", (row) => row.policy.trim() === ""],
    ];
    for (const [key, label] of [["source", "source"], ["seed", "seed"]]) {
      const found = [...new Set(rows.map((row) => row[key]))].filter(Boolean);
      if (found.length > 1) found.forEach((one) => filters.push([`${key}:${one}`, `${label} ${one}`, (row) => row[key] === one]));
    }
    const score = (side) => (row, judge) => row[side][judge];
    const sorts = [
      ["-change", "largest gain", (row, judge) => row.change[judge]], ["change", "largest loss", (row, judge) => row.change[judge]],
      ["-policy", "highest policy score", score("policyScores")], ["policy", "lowest policy score", score("policyScores")],
      ["-reference", "highest reference score", score("referenceScores")],
      ["reference", "lowest reference score", score("referenceScores")],
      ["-length", "longest policy answer", (row) => row.policyLength], ["length", "shortest policy answer", (row) => row.policyLength],
      ["order", "order of the file", (row) => row.order],
    ];
    fill(field("show"), filters);
    fill(field("sort"), sorts);
    if (field("judge")) fill(field("judge"), samples.judges.map((name, index) => [index, name]));
    let page = 0;
    const judge = () => Number(field("judge") ? field("judge").value : samples.primary);
    if (field("judge")) field("judge").value = samples.primary;

    const selected = () => {
      const words = field("search").value.trim().toLowerCase();
      const keep = filters.find(([key]) => key === field("show").value)[2];
      const [key, , value] = sorts.find(([name]) => name === field("sort").value);
      const at = judge(), sign = key.startsWith("-") ? -1 : 1;
      const found = rows.filter((row) => keep(row, at) && (!words
        || row.prompt.toLowerCase().includes(words) || row.policy.toLowerCase().includes(words)
        || row.reference.toLowerCase().includes(words)));
      const rank = (row) => { const one = value(row, at); return one === null ? Infinity : sign * one; };
      return found.sort((a, b) => (rank(a) - rank(b)) || (a.order - b.order));
    };
    const marked = (place, text, words) => {
      if (!words) { place.append(text); return; }
      const lower = text.toLowerCase();
      let from = 0, at;
      while ((at = lower.indexOf(words, from)) >= 0 && lower.length === text.length) {
        place.append(text.slice(from, at), make("mark", text.slice(at, at + words.length)));
        from = at + words.length;
      }
      place.append(text.slice(from));
    };
    const text = (name, value, words, notes) => {
      const cell = make("td", undefined, "text"), inner = make("div", undefined, "clip");
      cell.dataset.name = name;
      const said = value.trim();
      if (said === "") inner.append(make("span", "(empty)", "empty")); else marked(inner, said, words);
      cell.append(inner);
      if (notes) cell.append(make("span", notes, "meta"));
      return cell;
    };
    const cell = (name, value, style) => {
      const made = make("td", value, `right ${style || ""}`);
      made.dataset.name = name;
      return made;
    };
    const about = (length, ended) => `length ${length}${ended === false ? ", cut off" : ""}`;
    const show = () => {
      const found = selected(), size = Number(field("rows").value), words = field("search").value.trim().toLowerCase();
      const pages = Math.max(1, Math.ceil(found.length / size)), at = judge();
      page = Math.min(Math.max(page, 0), pages - 1);
      const part = found.slice(page * size, (page + 1) * size);
      body.replaceChildren(...part.map((row) => {
        const line = make("tr"), change = row.change[at];
        const note = [row.source, row.seed, samples.several ? `sample ${row.sample + 1}` : ""].filter(Boolean).join(", ");
        line.append(
          text("prompt", row.prompt, words, note),
          text("reference", row.reference, words, about(row.referenceLength, row.referenceEnded)),
          text("policy", row.policy, words, about(row.policyLength, row.policyEnded)),
          cell("reference score", number(row.referenceScores[at])), cell("policy score", number(row.policyScores[at])),
          cell("change", change === null ? "-" : signed(change), change > 0 ? "up" : change < 0 ? "down" : ""),
        );
        return line;
      }));
      const first = found.length ? page * size + 1 : 0;
      $(".count", root).textContent = `${first.toLocaleString("en")} to ${(first + part.length - (first ? 1 : 0)).toLocaleString("en")} of `
        + `${found.length.toLocaleString("en")} pairs`;
      $(".pager span", root).textContent = `page ${page + 1} of ${pages.toLocaleString("en")}`;
      $("[data-page='-1']", root).disabled = page === 0;
      $("[data-page='1']", root).disabled = page === pages - 1;
      const [key] = sorts.find(([name]) => name === field("sort").value);
      $$("thead button", root).forEach((button) => {
        const head = button.closest("th");
        if (key === button.dataset.sort) head.setAttribute("aria-sort", "ascending");
        else if (key === `-${button.dataset.sort}`) head.setAttribute("aria-sort", "descending");
        else head.removeAttribute("aria-sort");
      });
    };
    const again = () => { page = 0; show(); };
    form.addEventListener("input", again);
    form.addEventListener("submit", (event) => event.preventDefault());
    $$("[data-page]", root).forEach((button) => button.addEventListener("click", () => { page += Number(button.dataset.page); show(); }));
    $$("thead button", root).forEach((button) => button.addEventListener("click", () => {
      const key = button.dataset.sort;
      field("sort").value = field("sort").value === `-${key}` ? key : `-${key}`;
      again();
    }));
    show();
  }

  // ---------------------------------------------------------------- tokens
  const episodes = read("episodes-data");
  if (episodes) {
    const root = $("#episodes"), form = $("form", root);
    fill(form.elements.episode, episodes.map((one, index) => [index, `update ${one.update}, episode ${one.episode}, score ${number(one.score)}`]));
    const columns = Object.keys(episodes[0].columns);
    fill(form.elements.colour, columns.map((name) => [name, name]));
    const show = () => {
      const one = episodes[Number(form.elements.episode.value)], name = form.elements.colour.value;
      const values = one.columns[name] || [];
      const largest = Math.max(...values.map((value) => Math.abs(value ?? 0)), 1e-12);
      $(".prompt", root).textContent = one.prompt;
      const line = $(".tokens", root), told = $(".token-numbers", root);
      line.replaceChildren(...one.tokens.map((token, index) => {
        const share = (values[index] ?? 0) / largest, size = Math.abs(share);
        const level = size < 0.05 ? 0 : size < 0.25 ? 1 : size < 0.6 ? 2 : 3;
        const span = make("span", token, level ? `t-${share < 0 ? "neg" : "pos"}${level}` : "t-zero");
        span.addEventListener("pointerenter", () => {
          told.textContent = `${JSON.stringify(token)}: ` + columns.map((key) => `${key} ${number(one.columns[key][index])}`).join(", ");
        });
        return span;
      }));
      const head = make("tr");
      ["token", ...columns].forEach((key) => head.append(make("th", key)));
      $("thead", root).replaceChildren(head);
      $("tbody", root).replaceChildren(...one.tokens.map((token, index) => {
        const row = make("tr");
        row.append(make("td", token), ...columns.map((key) => make("td", number(one.columns[key][index]), "right")));
        return row;
      }));
    };
    form.addEventListener("input", show);
    form.addEventListener("submit", (event) => event.preventDefault());
    show();
  }
})();
