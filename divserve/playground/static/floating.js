// Where a floating box goes: below its anchor, or above it where there is no room below.

const GAP = 8;

/** Places `box` (position: fixed) at the rectangle of its anchor, inside the window. */
export function place(box, anchor) {
  const { width, height } = box.getBoundingClientRect();
  const { clientWidth, clientHeight } = document.documentElement;
  const below = anchor.bottom + GAP;
  const above = anchor.top - GAP - height;
  const top = below + height <= clientHeight || above < 0 ? below : above;
  const left = Math.min(Math.max(GAP, anchor.left), clientWidth - width - GAP);
  box.style.setProperty("left", `${Math.max(GAP, left)}px`);
  box.style.setProperty("top", `${Math.max(GAP, Math.min(top, clientHeight - height - GAP))}px`);
}
