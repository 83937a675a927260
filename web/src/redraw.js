// Draws the page soon, however often it is asked to: once a frame at most, and not while nobody sees it.

let draw = () => {};
let waiting = false;

/** Says how the page is drawn. */
export function drawWith(how) {
  draw = how;
}

/** Asks for the page to be drawn. */
export function redraw() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    draw();
  });
}
