"use strict";

// Filters and shows the items, a page at a time: there may be thousands. Texts reach the page as text nodes only.
(() => {
  const source = document.getElementById("items-data");
  if (!source) return;
  const PAGE = 20;
  // The rule of text.py: characters that cannot be seen or told from others are shown by their code point.
  const UNSEEN = /[\p{Cc}\p{Cf}\p{Co}\p{Cs}\p{Zl}\p{Zp}\p{Zs}\uFFFD]/u;
  const MARKED = new Map([[" ", "space"], ["\n", "newline"], ["\t", "tab"]]);
  const OUTCOMES = new Map([["right", "✓ right"], ["wrong", "✗ wrong"], ["unasked", "– not given"], ["", ""]]);

  const data = JSON.parse(source.textContent);
  const models = data.models;
  const root = document.getElementById("items");
  const form = root.querySelector("form");
  const list = root.querySelector(".items");
  const more = root.querySelector(".more");
  const groups = root.querySelector(".groups");
  const all = data.sections.flatMap((section, index) => section.items.map((item) => ({ ...item, section: index })));
  let found = [];

  const make = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  };

  const visible = (text) => {
    const parts = [];
    let plain = "";
    const flush = () => {
      if (plain) parts.push(plain);
      plain = "";
    };
    for (const character of text) {
      const mark = MARKED.get(character);
      if (!mark && !UNSEEN.test(character)) {
        plain += character;
        continue;
      }
      flush();
      const code = `U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
      parts.push(mark ? make("i", { class: mark }, character) : make("i", { class: "code" }, code));
    }
    flush();
    return make("div", { class: "text" }, ...parts);
  };

  const has = (mapping, name) => Object.hasOwn(mapping, name);

  const option = (value, label) => make("option", { value }, label);

  const outcome = (item, model) => {
    if (has(item.problems, model) || (has(item.correct, model) && item.correct[model] === null)) return "unasked";
    if (!has(item.correct, model)) return "";
    return item.correct[model] ? "right" : "wrong";
  };

  const wrongModels = (item) => models.filter((model) => outcome(item, model) === "wrong").length;

  const matches = (item, wanted) => {
    if (wanted.section !== "" && item.section !== Number(wanted.section)) return false;
    if (wanted.groups.some(([name, value]) => item.groups[name] !== value)) return false;
    const chosen = wanted.model === "" ? models : [wanted.model];
    if (wanted.outcome === "split") {
      if (!models.some((model) => outcome(item, model) === "right") || wrongModels(item) === 0) return false;
    } else if (wanted.outcome !== "" && !chosen.some((model) => outcome(item, model) === wanted.outcome)) {
      return false;
    }
    if (!wanted.text) return true;
    return [item.id, item.prompt, item.gold, ...Object.values(item.answers)].some((text) =>
      text.toLowerCase().includes(wanted.text));
  };

  const wanted = () => ({
    section: form.section.value,
    groups: [...groups.querySelectorAll("select")].filter((one) => one.value).map((one) => [one.dataset.group, one.value]),
    model: form.model.value,
    outcome: form.outcome.value,
    text: form.text.value.toLowerCase(),
  });

  const answerRow = (item, model) => {
    const state = outcome(item, model);
    const answer = make("td");
    if (has(item.answers, model)) answer.append(visible(item.answers[model]));
    if (has(item.problems, model)) answer.append(make("span", { class: "quiet" }, item.problems[model]));
    const name = make("span", { class: `model ${data.colours[models.indexOf(model)]}` }, model);
    const heading = make("th", { scope: "row" }, name, " ", make("span", { class: state }, OUTCOMES.get(state)));
    return make("tr", {}, heading, answer);
  };

  const card = (item) => {
    const about = Object.entries(item.groups).map(([name, value]) => `${name}: ${value}`).join(" · ");
    const asked = models.filter((model) =>
      [item.answers, item.correct, item.problems].some((of) => has(of, model)));
    const heading = make("h3", {}, `${data.sections[item.section].title}: ${item.id}`, make("small", {}, about));
    const gold = make("tr", {}, make("th", { scope: "row" }, "wanted"), make("td", {}, visible(item.gold)));
    const body = make("tbody", {}, gold, ...asked.map((model) => answerRow(item, model)));
    return make("li", {}, heading, visible(item.prompt), make("div", { class: "scroll" }, make("table", {}, body)));
  };

  const showMore = () => {
    const start = list.children.length;
    list.append(...found.slice(start, start + PAGE).map(card));
    more.hidden = list.children.length >= found.length;
  };

  const update = () => {
    const filter = wanted();
    found = all.filter((item) => matches(item, filter));
    if (form.order.value) {
      const sign = form.order.value === "hardest" ? -1 : 1;
      const counts = new Map(found.map((item) => [item, wrongModels(item)]));
      found.sort((left, right) => sign * (counts.get(left) - counts.get(right)));
    }
    list.replaceChildren();
    root.querySelector(".count").textContent =
      `${found.length.toLocaleString("en")} of ${all.length.toLocaleString("en")} items`;
    showMore();
  };

  // Sections have different strata, so they can be chosen once a section is.
  const fillGroups = () => {
    const values = new Map();
    for (const item of form.section.value === "" ? [] : data.sections[Number(form.section.value)].items) {
      for (const [name, value] of Object.entries(item.groups)) {
        if (!values.has(name)) values.set(name, new Set());
        values.get(name).add(value);
      }
    }
    groups.replaceChildren(
      ...[...values].map(([name, known]) => {
        const options = [...known].sort().map((value) => option(value, value));
        return make("label", {}, `${name} `, make("select", { "data-group": name }, option("", "any"), ...options));
      }),
    );
  };

  form.section.append(option("", "all"), ...data.sections.map((section, index) => option(index, section.title)));
  form.model.append(option("", "any"), ...models.map((model) => option(model, model)));
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", (event) => {
    if (event.target === form.section) fillGroups();
    update();
  });
  more.addEventListener("click", showMore);
  if (data.sections.length === 1) form.section.value = "0";
  form.hidden = false;
  fillGroups();
  update();
})();
