// Elements described as plain objects, and a patch that makes the page look like them while keeping what is already there.
//
// Text is only ever set as text: nothing that a user wrote can become markup.

const SVG = "http://www.w3.org/2000/svg";

/**
 * Describes an element. Children are descriptions, texts, numbers, or lists of them; null and booleans are left out.
 *
 * Besides attributes, `props` may hold: `key` (which child it is among its siblings), `style` (an object of CSS
 * properties), `onclick` and the like, `initially` (attributes set once, which the user may change afterwards), `owned`
 * (a function that gets the element after each patch and looks after its content itself).
 */
export function h(tag, props, ...children) {
  return { tag, props: props ?? {}, children: children.flat(Infinity).filter(isShown) };
}

const isShown = (child) => child !== null && child !== undefined && typeof child !== "boolean";

/** Makes the children of `parent` look like `children`. Elements of the same key or kind are kept, and so is the focus. */
export function patch(parent, children) {
  const keyed = new Map();
  const others = [];
  for (const node of parent.childNodes) {
    if (node.essaimKey === undefined) others.push(node);
    else keyed.set(node.essaimKey, node);
  }
  let place = parent.firstChild;
  for (const child of [children].flat(Infinity).filter(isShown)) {
    const node = take(child, keyed, others) ?? create(child, parent);
    if (node === place) place = place.nextSibling;
    else parent.insertBefore(node, place);
    update(node, child);
  }
  for (const node of [...keyed.values(), ...others]) node.remove();
}

/** The existing node that a description can be laid over, if there is one. */
function take(child, keyed, others) {
  if (typeof child !== "object") {
    return others[0]?.nodeType === Node.TEXT_NODE ? others.shift() : undefined;
  }
  const { key } = child.props;
  if (key !== undefined) {
    const node = keyed.get(String(key));
    if (node?.localName !== child.tag) return undefined;
    keyed.delete(String(key));
    return node;
  }
  return others[0]?.localName === child.tag ? others.shift() : undefined;
}

function create(child, parent) {
  if (typeof child !== "object") return document.createTextNode("");
  const inSvg = child.tag === "svg" || parent.namespaceURI === SVG;
  const node = inSvg ? document.createElementNS(SVG, child.tag) : document.createElement(child.tag);
  if (child.props.key !== undefined) node.essaimKey = String(child.props.key);
  for (const [name, value] of Object.entries(child.props.initially ?? {})) setAttribute(node, name, value);
  return node;
}

function update(node, child) {
  if (typeof child !== "object") {
    const text = String(child);
    if (node.data !== text) node.data = text;
    return;
  }
  const before = node.essaimProps ?? {};
  const { key, initially, owned, style, ...attributes } = child.props;
  for (const name of Object.keys(before)) {
    if (!(name in attributes)) setAttribute(node, name, null);
  }
  for (const [name, value] of Object.entries(attributes)) {
    if (before[name] !== value) setAttribute(node, name, value);
  }
  node.essaimProps = attributes;
  // Through the object model, which the content security policy allows, not as an attribute, which it does not.
  for (const [name, value] of Object.entries(style ?? {})) {
    if (node.style.getPropertyValue(name) !== value) node.style.setProperty(name, value);
  }
  if (owned) owned(node);
  else patch(node, child.children);
}

function setAttribute(node, name, value) {
  if (name.startsWith("on")) node[name] = value;
  else if (value === null || value === undefined || value === false) node.removeAttribute(name);
  else node.setAttribute(name, value === true ? "" : String(value));
}
