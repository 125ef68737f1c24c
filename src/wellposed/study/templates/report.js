"use strict";
for (const plot of document.querySelectorAll(".plot")) {
  const data = plot.querySelector("script");
  if (!data) continue;
  const spots = JSON.parse(data.textContent);
  const dot = Object.assign(document.createElement("span"), { className: "hover-dot", hidden: true });
  const tip = Object.assign(document.createElement("span"), { className: "tip", hidden: true });
  tip.setAttribute("role", "status");
  plot.append(dot, tip);
  plot.tabIndex = 0;
  plot.setAttribute("aria-description", "The left and right arrow keys step through the points.");
  let current = -1;

  const hide = () => {
    dot.hidden = tip.hidden = true;
    current = -1;
  };
  const show = (index) => {
    current = index;
    const [x, y, text] = spots[index];
    tip.textContent = text;
    dot.hidden = tip.hidden = false;
    for (const element of [dot, tip]) {
      element.style.left = `${x / 10}%`;
      element.style.top = `${y / 10}%`;
    }
    tip.classList.toggle("below", y < 350);
    const box = tip.getBoundingClientRect();
    const room = document.documentElement.clientWidth - 8;
    const shift = Math.max(8 - box.left, 0) - Math.max(box.right - room, 0);
    tip.style.left = `calc(${x / 10}% + ${shift}px)`;
  };
  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    let nearest = -1;
    let least = Infinity;
    spots.forEach(([x, y], index) => {
      const dx = (x / 1000) * box.width - (event.clientX - box.left);
      const dy = (y / 1000) * box.height - (event.clientY - box.top);
      if (dx * dx + dy * dy < least) [nearest, least] = [index, dx * dx + dy * dy];
    });
    if (nearest !== current) show(nearest);
  });
  plot.addEventListener("pointerleave", hide);
  plot.addEventListener("blur", hide);
  plot.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (event.key === "Escape") hide();
    if (!step) return;
    event.preventDefault();
    show((current + step + spots.length) % spots.length);
  });
}

for (const box of document.querySelectorAll(".code")) {
  const button = box.querySelector("button");
  const code = box.querySelector("code");
  button.hidden = false;
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(code);
      button.textContent = "Selected: press Ctrl+C";
    }
    setTimeout(() => (button.textContent = "Copy"), 2000);
  });
}
