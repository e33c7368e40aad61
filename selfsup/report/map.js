// The map of the features: one canvas, with zoom, classes, the image under the pointer and the neighbours of a click.
for (const box of document.querySelectorAll(".map")) {
  const numbers = (text) => new Uint16Array(Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer);
  const maps = JSON.parse(box.dataset.map).maps;
  const sheets = [...box.querySelectorAll("img")];
  for (const map of maps) {
    for (const name of ["points", "labels", "neighbours"]) map[name] = numbers(map[name]);
  }
  const make = (tag, parent, text = "", name = "") => {
    const element = document.createElement(tag);
    element.textContent = text;
    element.className = name;
    parent.append(element);
    return element;
  };
  const controls = make("p", box, "", "controls");
  const choice = make("select", controls);
  choice.setAttribute("aria-label", "run");
  maps.forEach((map, place) => { make("option", choice, map.name).value = place; });
  const button = (text, label, act) => {
    const made = make("button", controls, text);
    made.type = "button";
    made.setAttribute("aria-label", label);
    made.addEventListener("click", () => { act(); draw(); });
  };
  button("+", "zoom in", () => zoom(1.5, canvas.clientWidth / 2, canvas.clientHeight / 2));
  button("−", "zoom out", () => zoom(1 / 1.5, canvas.clientWidth / 2, canvas.clientHeight / 2));
  button("whole map", "show the whole map", () => { scale = 1; left = top = 0; });
  const caption = make("span", controls, "", "quiet");
  const canvas = make("canvas", box);
  canvas.tabIndex = 0;
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", "Map of the features; the arrow keys move it, plus and minus zoom");
  const legend = make("ul", box, "", "legend");
  const panel = make("div", box, "", "near");
  panel.setAttribute("aria-live", "polite");

  let map = maps[0], scale = 1, left = 0, top = 0, hovered = -1, chosen = -1;
  let off = new Set();
  const margin = 14;
  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const dark = () => matchMedia("(prefers-color-scheme: dark)").matches;
  const hue = (place) => (map.classes.length <= 8
    ? color(`s${place}`)
    : `hsl(${(360 * place) / map.classes.length} ${dark() ? "75% 68%" : "80% 38%"})`);
  const count = () => map.labels.length;
  const side = () => Math.min(canvas.clientWidth, canvas.clientHeight) - 2 * margin;
  const across = () => (canvas.clientWidth - side()) / 2;
  const down = () => (canvas.clientHeight - side()) / 2;
  const place = (point) => [
    (across() + (map.points[2 * point] / 65535) * side()) * scale + left,
    (down() + (1 - map.points[2 * point + 1] / 65535) * side()) * scale + top,
  ];
  const zoom = (factor, x, y) => {
    const now = Math.min(60, Math.max(1, scale * factor));
    left = x - ((x - left) * now) / scale;
    top = y - ((y - top) * now) / scale;
    scale = now;
    if (scale === 1) left = top = 0;
  };
  const image = (context, of, point, x, y, size) => {
    const own = of.side;
    const from = [(point % of.columns) * own, Math.floor(point / of.columns) * own];
    context.imageSmoothingEnabled = size < 2 * own;
    context.drawImage(sheets[of.sheet], ...from, own, own, x, y, size, size);
  };
  const name = (of, point) => of.classes[of.labels[point]];

  function draw() {
    const ratio = devicePixelRatio || 1;
    const width = canvas.clientWidth, height = canvas.clientHeight;
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    const context = canvas.getContext("2d");
    context.scale(ratio, ratio);
    const shades = map.classes.map((_, number) => hue(number));
    const radius = Math.min(7, (count() > 700 ? 2.2 : 3.2) * Math.sqrt(scale));
    context.globalAlpha = 0.75;
    for (let point = 0; point < count(); point++) {
      if (off.has(map.labels[point])) continue;
      const [x, y] = place(point);
      if (x < -9 || y < -9 || x > width + 9 || y > height + 9) continue;
      context.fillStyle = shades[map.labels[point]];
      context.beginPath();
      context.arc(x, y, radius, 0, 7);
      context.fill();
    }
    context.globalAlpha = 1;
    context.strokeStyle = color("text");
    if (chosen >= 0) {
      const [x, y] = place(chosen);
      context.globalAlpha = 0.6;
      for (const other of near(map, chosen)) {
        context.beginPath();
        context.moveTo(x, y);
        context.lineTo(...place(other));
        context.stroke();
      }
      context.globalAlpha = 1;
    }
    for (const point of new Set([chosen, hovered])) {
      if (point < 0) continue;
      context.lineWidth = 2;
      context.beginPath();
      context.arc(...place(point), radius + 3, 0, 7);
      context.stroke();
    }
    if (hovered >= 0) tip(context, width, height);
  }

  function tip(context, width, height) {
    const size = 72, line = 20;
    const [x, y] = place(hovered);
    context.font = "13px system-ui, sans-serif";
    const words = name(map, hovered);
    const wide = Math.max(size, Math.min(width - 16, context.measureText(words).width)) + 8;
    const from = [Math.min(Math.max(4, x + 12), width - wide - 4), Math.min(Math.max(4, y + 12), height - size - line - 12)];
    context.fillStyle = color("panel");
    context.strokeStyle = color("line");
    context.lineWidth = 1;
    context.fillRect(...from, wide, size + line + 8);
    context.strokeRect(...from, wide, size + line + 8);
    image(context, map, hovered, from[0] + 4, from[1] + 4, size);
    context.fillStyle = color("text");
    context.fillText(words, from[0] + 4, from[1] + size + line, wide - 8);
  }

  const near = (of, point) => of.neighbours.subarray(point * of.nearest, (point + 1) * of.nearest);

  function picture(parent, of, point, frame, words) {
    const shown = make("canvas", parent, "", frame);
    shown.width = shown.height = 2 * of.side;
    shown.title = words;
    shown.setAttribute("role", "img");
    shown.setAttribute("aria-label", words);
    image(shown.getContext("2d"), of, point, 0, 0, 2 * of.side);
    shown.addEventListener("click", () => choose(point));
  }

  function choose(point) {
    chosen = point;
    panel.replaceChildren();
    if (point >= 0) {
      const others = maps.filter((other) => other.sheet === map.sheet);
      const own = name(map, point);
      make("p", panel, `Nearest in the features of each run to this image of ${own}: a full frame is the same class, a dashed one another.`, "quiet");
      const asked = make("div", panel, "", "row");
      make("span", asked, own);
      picture(asked, map, point, "", own);
      for (const other of others) {
        const row = make("div", panel, "", "row");
        make("span", row, other.name);
        for (const one of near(other, point)) {
          picture(row, other, one, name(other, one) === name(other, point) ? "same" : "different", name(other, one));
        }
      }
    }
    draw();
  }

  function take(number) {
    const before = map;
    map = maps[number];
    const same = before.sheet === map.sheet;
    if (!same || before.classes.join("\n") !== map.classes.join("\n")) off = new Set();
    hovered = -1;
    caption.textContent = `${map.title}, ${count()} images`;
    legend.replaceChildren();
    const entries = map.classes.map((words, number) => {
      const label = make("label", make("li", legend));
      const box = make("input", label);
      box.type = "checkbox";
      box.autocomplete = "off";
      box.checked = !off.has(number);
      make("span", label, "●", "sign").style.color = hue(number);
      label.append(words);
      box.addEventListener("change", () => { off[box.checked ? "delete" : "add"](number); draw(); });
      return box;
    });
    for (const [words, on] of [["all", true], ["none", false]]) {
      const made = make("button", make("li", legend), words);
      made.type = "button";
      made.addEventListener("click", () => {
        off = new Set(on ? [] : map.classes.keys());
        entries.forEach((entry) => { entry.checked = on; });
        draw();
      });
    }
    choose(same ? chosen : -1);
  }

  const at = (event) => {
    const edge = canvas.getBoundingClientRect();
    return [event.clientX - edge.left, event.clientY - edge.top];
  };
  const nearest = ([x, y]) => {
    let best = -1, least = 18 ** 2;
    for (let point = 0; point < count(); point++) {
      if (off.has(map.labels[point])) continue;
      const [px, py] = place(point);
      const distance = (px - x) ** 2 + (py - y) ** 2;
      if (distance < least) [best, least] = [point, distance];
    }
    return best;
  };
  const fingers = new Map();
  let moved = 0;
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, at(event));
    moved = 0;
  });
  canvas.addEventListener("pointermove", (event) => {
    const now = at(event), before = fingers.get(event.pointerId);
    if (before === undefined) {
      hovered = nearest(now);
    } else if (fingers.size === 2) {
      const [[, other]] = [...fingers].filter(([id]) => id !== event.pointerId);
      const apart = (one) => Math.hypot(one[0] - other[0], one[1] - other[1]);
      if (apart(before) > 0) zoom(apart(now) / apart(before), (now[0] + other[0]) / 2, (now[1] + other[1]) / 2);
      moved += 9;
    } else {
      left += now[0] - before[0];
      top += now[1] - before[1];
      moved += Math.abs(now[0] - before[0]) + Math.abs(now[1] - before[1]);
    }
    if (before !== undefined) fingers.set(event.pointerId, now);
    draw();
  });
  const lift = (event) => {
    const known = fingers.delete(event.pointerId);
    if (known && event.type === "pointerup" && moved < 5) {
      hovered = nearest(at(event));
      choose(hovered);
    }
  };
  canvas.addEventListener("pointerup", lift);
  canvas.addEventListener("pointercancel", lift);
  canvas.addEventListener("pointerleave", () => { hovered = -1; draw(); });
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoom(1.0015 ** -event.deltaY, ...at(event));
    draw();
  }, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [40, 0], ArrowRight: [-40, 0], ArrowUp: [0, 40], ArrowDown: [0, -40] }[event.key];
    if (step) [left, top] = [left + step[0], top + step[1]];
    else if ("+=-".includes(event.key)) zoom(event.key === "-" ? 1 / 1.5 : 1.5, canvas.clientWidth / 2, canvas.clientHeight / 2);
    else return;
    event.preventDefault();
    draw();
  });
  choice.addEventListener("change", () => take(Number(choice.value)));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => take(maps.indexOf(map)));
  addEventListener("resize", draw);
  Promise.all(sheets.map((sheet) => sheet.decode().catch(() => {}))).then(() => take(0));
}
