// Sorts and filters the gallery of a report page, moves through its photos and chooses the mask over them.
// gallery.html.jinja has the markup. The page's Content-Security-Policy allows this script by its hash.
(() => {
  "use strict";

  const gallery = document.querySelector(".gallery");
  const find = (selector) => gallery.querySelector(selector);
  const list = find(".items");
  const given = [...list.children];
  const [mask, opacity, order, filter] = ["mask", "opacity", "order", "class"].map((name) => find(`[name=${name}]`));
  let current = null; // the item that the keys act on
  let large = false; // whether it alone is shown

  const shown = () => [...list.children].filter((item) => !item.hidden);

  function render() {
    const items = shown();
    const entry = current ?? items[0]; // Tab reaches one item, and the keys the others
    for (const item of given) {
      item.tabIndex = item === entry ? 0 : -1;
      item.setAttribute("aria-current", item === current);
      item.querySelector("button").hidden = large; // "all photos" leads back
    }
    list.classList.toggle("large", large);
    find(".steps").hidden = !large;
    find(".position").textContent = `${items.indexOf(current) + 1} of ${items.length}`;
    find(".count").textContent = `${items.length} of ${given.length} shown`;
  }

  function reveal() {
    if (!current) return;
    current.focus({ preventScroll: true });
    if (large) gallery.scrollIntoView({ block: "start" });
    current.scrollIntoView({ block: "nearest" });
  }

  function step(by) {
    const items = shown();
    const index = items.indexOf(current);
    current = items[index < 0 ? 0 : Math.min(Math.max(index + by, 0), items.length - 1)] ?? null;
    render();
  }

  function setLarge(on, item = current ?? shown()[0] ?? null) {
    current = item;
    large = on && item !== null;
    render();
    reveal();
  }

  function score(item) {
    const value = Number.parseFloat(item.dataset.score);
    return Number.isFinite(value) ? value : null;
  }

  function byScore(sign) {
    return (one, other) => {
      const [a, b] = [score(one), score(other)];
      return a === null || b === null ? (a === null) - (b === null) : sign * (a - b);
    };
  }

  const name = (item) => item.querySelector(".name").textContent;
  const collator = new Intl.Collator("en", { numeric: true });
  const orders = {
    given: () => 0,
    ascending: byScore(1),
    descending: byScore(-1),
    name: (one, other) => collator.compare(name(one), name(other)),
  };

  function arrange() {
    list.append(...[...given].sort(orders[order.value]));
    for (const item of given) {
      item.hidden = filter.value !== "" && !item.dataset.classes.split(" ").includes(filter.value);
    }
    if (current?.hidden) current = large ? (shown()[0] ?? null) : null;
    large = large && current !== null;
    render();
  }

  function showMask() {
    for (const picture of list.querySelectorAll(".mask")) picture.hidden = picture.dataset.mask !== mask.value;
  }

  function nextMask() {
    mask.selectedIndex = (mask.selectedIndex + 1) % mask.length;
    showMask();
  }

  function showOpacity() {
    const text = `${Math.round(100 * opacity.value)} %`;
    gallery.style.setProperty("--opacity", opacity.value);
    opacity.setAttribute("aria-valuetext", text);
    find(".percent").textContent = text;
  }

  function changeOpacity(by) {
    opacity.value = Number(opacity.value) + by; // the slider rounds, and keeps to its limits
    showOpacity();
  }

  function move(by) {
    step(by);
    reveal();
  }

  const actions = new Map([
    ...["n", "j", "arrowright"].map((key) => [key, () => move(1)]),
    ...["p", "k", "arrowleft"].map((key) => [key, () => move(-1)]),
    ...["+", "="].map((key) => [key, () => changeOpacity(0.1)]), // one key on many keyboards
    ["-", () => changeOpacity(-0.1)],
    ["m", nextMask],
    ["enter", () => setLarge(!large)],
  ]);

  document.addEventListener("keydown", (event) => {
    const { key, target } = event;
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    if (key === "Escape") {
      if (target.closest("select, input")) target.blur();
      if (large) setLarge(false);
      return;
    }
    // A control, a table that scrolls, and a link or button have keys of their own.
    if (target.closest("select, input, .scroll") || (key === "Enter" && target.closest("a, button, summary"))) return;
    const action = actions.get(key.toLowerCase());
    if (!action) return;
    event.preventDefault();
    action();
  });

  list.addEventListener("focusin", (event) => {
    current = event.target.closest(".item");
    render();
  });
  list.addEventListener("click", (event) => {
    const item = event.target.closest(".photo")?.closest(".item");
    if (item) setLarge(!(large && item === current), item);
  });
  // These leave the focus on the button, and the page where it is.
  find("[name=previous]").addEventListener("click", () => step(-1));
  find("[name=next]").addEventListener("click", () => step(1));
  find("[name=all]").addEventListener("click", () => setLarge(false));
  mask.addEventListener("change", showMask);
  opacity.addEventListener("input", showOpacity);
  order.addEventListener("change", arrange);
  filter.addEventListener("change", arrange);

  find(".controls").hidden = false;
  find(".help").hidden = false;
  showMask();
  showOpacity();
  arrange();
})();
