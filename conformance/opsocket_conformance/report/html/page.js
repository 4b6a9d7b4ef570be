"use strict";
(() => {
  if (navigator.clipboard) {
    for (const button of document.querySelectorAll(".copy")) button.hidden = false;
    document.addEventListener("click", async (event) => {
      const button = event.target.closest(".copy");
      if (!button) return;
      try {
        await navigator.clipboard.writeText(button.previousElementSibling.textContent);
        button.textContent = "copied";
      } catch {
        button.textContent = "select and copy";
      }
      setTimeout(() => { button.textContent = "copy"; }, 2000);
    });
  }

  const table = document.getElementById("cases-table");
  const form = document.getElementById("cases-form");
  const shown = document.getElementById("cases-shown");
  const body = table.tBodies[0];
  const rows = [...body.rows].map((row) => {
    const [verdict, id, operator, ratio, ms] = [...row.cells].map((cell) => cell.textContent);
    return { row, keys: [verdict, id, operator, ratio === "not finite" ? Infinity : parseFloat(ratio), parseFloat(ms)] };
  });

  const filter = () => {
    const text = form.elements.text.value.trim().toLowerCase();
    const verdict = form.elements.verdict.value, operator = form.elements.operator.value;
    let count = 0;
    for (const { row, keys } of rows) {
      const fits = (!verdict || keys[0].split(" ")[1] === verdict) && (!operator || keys[2] === operator)
        && (!text || keys[1].toLowerCase().includes(text));
      row.hidden = !fits;
      count += fits;
    }
    shown.textContent = `${count} of ${rows.length} shown`;
  };
  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  filter();

  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = head.firstElementChild;
    button.disabled = false;
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const sign = down ? -1 : 1;
      const last = (key) => typeof key === "number" && Number.isNaN(key);
      rows.sort((a, b) => {
        const x = a.keys[column], y = b.keys[column];
        if (last(x) || last(y)) return last(x) - last(y);
        return x < y ? -sign : x > y ? sign : 0;
      });
      body.append(...rows.map(({ row }) => row));
    });
  });
})();
