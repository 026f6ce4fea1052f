// Sorting, filtering, ordering, the two-picture view and the theme of a comparison report. Needs no network.
"use strict";
(() => {
  const all = (selector, inside = document) => [...inside.querySelectorAll(selector)];
  const value = (cell) => {
    const number = Number(cell.dataset.v);
    return cell.dataset.v === undefined ? cell.textContent : cell.dataset.v === "" || Number.isNaN(number) ? null : number;
  };
  const compare = (a, b) => (typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b);

  function sortBy(head) {
    const table = head.closest("table"), body = table.tBodies[0], column = Number(head.dataset.column);
    const down = head.getAttribute("aria-sort") === "ascending";
    all("th[aria-sort]", table).forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const rows = [...body.rows].map((row) => [value(row.cells[column]), row]);
    rows.sort(([a], [b]) => (a === null || b === null ? (a === null) - (b === null) : down ? compare(b, a) : compare(a, b)));
    body.append(...rows.map(([, row]) => row));          // rows without a value stay last both ways
  }

  all("th.sortable").forEach((head) => {
    head.tabIndex = 0;
    head.addEventListener("click", () => sortBy(head));
    head.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); sortBy(head); }
    });
  });

  const filter = document.getElementById("filter");
  filter?.addEventListener("input", () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    all("#layers tbody tr").forEach((row) => {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    });
  });

  const order = document.getElementById("order"), list = document.getElementById("prompts");
  order?.addEventListener("change", () => {
    const key = order.value === "worst" ? "worst" : "index";
    list.append(...all(".prompt", list).sort((a, b) => Number(a.dataset[key]) - Number(b.dataset[key])));
  });

  const view = document.getElementById("view");
  function open(figure) {
    const figures = all("figure", figure.parentElement);
    const [under, over] = all("img", view.querySelector(".stack"));
    const other = figure === figures[0] ? figures[1] ?? figure : figure;
    const name = (of) => of.querySelector("figcaption").textContent;
    for (const [image, of] of [[under, figures[0]], [over, other]]) {
      const source = of.querySelector("img");
      image.src = source.src; image.alt = source.alt; image.className = source.className;
    }
    view.querySelector(".ends").replaceChildren(...[figures[0], other].map((of) => {
      const label = document.createElement("span");
      label.textContent = name(of);
      return label;
    }));
    slide();
    view.showModal();
  }
  function slide() {
    const share = view.querySelector("input").value;
    view.querySelectorAll(".stack img")[1].style.clipPath = `inset(0 0 0 ${share}%)`;
  }
  view?.querySelector("input").addEventListener("input", slide);
  view?.addEventListener("click", (event) => { if (event.target === view) view.close(); });
  view?.querySelector("button").addEventListener("click", () => view.close());
  all("figure button").forEach((button) => button.addEventListener("click", () => open(button.closest("figure"))));

  document.getElementById("theme")?.addEventListener("click", () => {
    const root = document.documentElement;
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });
})();
