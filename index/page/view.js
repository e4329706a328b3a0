// Pan and zoom of a canvas: pointer, wheel, two fingers, keys.

import { calm } from "./dom.js";

const MOST_ZOOM = 60;
const MARGIN_PX = 26;

// `draw` paints, `hover(at | null)` and `press` get a position on the canvas, in pixels.
export function prepareView(canvas, box, { draw, hover, press }) {
  let frame = { x: 0, y: 0, width: 2, height: 2 }; // what zoom 1 shows
  const view = { x: 0, y: 0, zoom: 1 };
  let own = false; // whether somebody has moved it
  const size = { width: 0, height: 0 };
  const held = new Map();
  let moved = 0;
  let waiting = false;

  const unit = () =>
    Math.max(1, Math.min((size.width - 2 * MARGIN_PX) / frame.width, (size.height - 2 * MARGIN_PX) / frame.height)) * view.zoom;
  const toScreen = (x, y) => [size.width / 2 + (x - view.x) * unit(), size.height / 2 - (y - view.y) * unit()];

  function redraw() {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      if (!size.width) return;
      const context = canvas.getContext("2d");
      const ratio = devicePixelRatio || 1;
      context.setTransform(ratio, 0, 0, ratio, 0, 0);
      context.clearRect(0, 0, size.width, size.height);
      draw(context, toScreen, { ...size, zoom: view.zoom });
    });
  }

  function zoomAt(factor, sx = size.width / 2, sy = size.height / 2) {
    const zoom = Math.min(MOST_ZOOM, Math.max(0.6, view.zoom * factor));
    const before = unit();
    view.zoom = zoom;
    const after = unit();
    // The point under the pointer stays in place.
    view.x += (sx - size.width / 2) * (1 / before - 1 / after);
    view.y -= (sy - size.height / 2) * (1 / before - 1 / after);
    own = true;
    redraw();
  }

  function setFrame(bounds) {
    frame = bounds;
    if (!own) Object.assign(view, { x: frame.x, y: frame.y, zoom: 1 });
    redraw();
  }

  function fit() {
    own = false;
    if (calm()) {
      Object.assign(view, { x: frame.x, y: frame.y, zoom: 1 });
      redraw();
      return;
    }
    const from = { ...view };
    const began = performance.now();
    const step = (now) => {
      const share = Math.min(1, (now - began) / 260);
      const eased = 1 - (1 - share) ** 3;
      view.x = from.x + (frame.x - from.x) * eased;
      view.y = from.y + (frame.y - from.y) * eased;
      view.zoom = from.zoom * (1 / from.zoom) ** eased;
      redraw();
      if (share < 1) requestAnimationFrame(step);
    };
    requestAnimationFrame(step);
  }

  const at = (event) => {
    const { left, top } = canvas.getBoundingClientRect();
    return [event.clientX - left, event.clientY - top];
  };

  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    held.set(event.pointerId, at(event));
    if (held.size === 1) moved = 0;
    canvas.classList.add("held");
  });
  canvas.addEventListener("pointermove", (event) => {
    const here = at(event);
    const last = held.get(event.pointerId);
    if (!last) {
      hover(here, toScreen);
      return;
    }
    const others = [...held].filter(([id]) => id !== event.pointerId).map(([, place]) => place);
    if (others.length) {
      const [other] = others;
      const far = (place) => Math.hypot(place[0] - other[0], place[1] - other[1]) || 1;
      zoomAt(far(here) / far(last), (here[0] + other[0]) / 2, (here[1] + other[1]) / 2);
      moved += 9;
    }
    const share = others.length ? 0.5 : 1;
    view.x -= (share * (here[0] - last[0])) / unit();
    view.y += (share * (here[1] - last[1])) / unit();
    moved += Math.abs(here[0] - last[0]) + Math.abs(here[1] - last[1]);
    held.set(event.pointerId, here);
    own = true;
    hover(null, toScreen);
    redraw();
  });
  const lift = (event) => {
    const was = held.delete(event.pointerId);
    if (!held.size) canvas.classList.remove("held");
    if (was && event.type === "pointerup" && moved < 5) {
      if (event.pointerType === "mouse") press(...at(event), toScreen);
      else hover(at(event), toScreen); // a finger cannot hover: the first touch shows, "like" is in the card
    }
  };
  canvas.addEventListener("pointerup", lift);
  canvas.addEventListener("pointercancel", lift);
  canvas.addEventListener("pointerleave", () => hover(null, toScreen));
  canvas.addEventListener(
    "wheel",
    (event) => {
      event.preventDefault();
      zoomAt(Math.exp(-event.deltaY * (event.ctrlKey ? 0.01 : 0.0016)), ...at(event));
    },
    { passive: false },
  );
  canvas.addEventListener("dblclick", (event) => zoomAt(2, ...at(event)));
  canvas.addEventListener("keydown", (event) => {
    const step = 40 / unit();
    const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, step], ArrowDown: [0, -step] };
    if (moves[event.key]) {
      view.x += moves[event.key][0];
      view.y += moves[event.key][1];
      redraw();
    } else if (event.key === "+" || event.key === "=") zoomAt(1.4);
    else if (event.key === "-") zoomAt(1 / 1.4);
    else if (event.key === "0") fit();
    else return;
    event.preventDefault();
    event.stopPropagation();
  });

  new ResizeObserver(() => {
    const ratio = devicePixelRatio || 1;
    size.width = box.clientWidth;
    size.height = box.clientHeight;
    canvas.width = Math.round(size.width * ratio);
    canvas.height = Math.round(size.height * ratio);
    redraw();
  }).observe(box);

  return { redraw, fit, setFrame, zoom: (factor) => zoomAt(factor) };
}
