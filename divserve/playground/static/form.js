// The form of a method's parameters, made from their JSON Schema.

import { h } from "./dom.js";
import { tip } from "./tip.js";

/**
 * The fields of `schema`.
 *
 * @param schema of /v1/decoding/methods: {properties}
 * @param values those that were set; changed by the form
 * @param prefix of the fields' ids
 * @param changed called after every change
 */
export function fieldsOf(schema, values, prefix, changed) {
  return Object.entries(schema.properties).map(([name, property]) => {
    const id = `${prefix}-${name}`;
    const input = inputOf(property, values[name], { id, "data-place": `decoding.${name}` });
    input.addEventListener("change", () => {
      const value = read(input, property);
      if (value === undefined) delete values[name];
      else values[name] = value;
      changed();
    });
    const words = `${property.description ?? ""} ${range(property)}`.trim();
    return h("div", { class: hasLongOption(property) ? "field is-long" : "field" },
      h("span", { class: "label-row" },
        h("label", { for: id }, breakable(name)), tip(`About ${name}`, words)),
      input);
  });
}

// A long name may break after an underscore.
function breakable(name) {
  return name.split(/(?<=_)/).flatMap((part, i) => i ? [h("wbr"), part] : [part]);
}

function inputOf(property, value, attributes) {
  const kind = kindOf(property);
  const known = value ?? property.default ?? "";
  if (kind.enum) {
    const options = kind.nullable ? ["", ...kind.enum] : kind.enum;
    return h("select", attributes, options.map((option) =>
      h("option", { value: option, selected: option === known }, option || "default")));
  }
  if (kind.type === "string") {
    const area = h("textarea", { ...attributes, rows: 2, maxlength: kind.maxLength });
    area.value = known;
    return area;
  }
  return h("input", {
    ...attributes, type: "number", step: kind.type === "integer" ? 1 : "any", value: known,
    inputmode: "decimal", placeholder: kind.nullable ? "default" : null,
  });
}

// One that a narrow field would cut.
function hasLongOption(property) {
  return kindOf(property).enum?.some((option) => option.length > 10) ?? false;
}

function kindOf(property) {
  const kinds = property.anyOf ?? [property];
  return { ...kinds.find(({ type }) => type !== "null"), nullable: kinds.length > 1 };
}

function read(input, property) {
  const { type, nullable } = kindOf(property);
  if (input.value === "" && (nullable || property.default !== undefined)) {
    if (!nullable) input.value = property.default;
    return undefined;
  }
  const value = type === "number" || type === "integer" ? input.valueAsNumber : input.value;
  return value === property.default || Number.isNaN(value) || value === "" ? undefined : value;
}

function range(property) {
  const { minimum, exclusiveMinimum, maximum } = kindOf(property);
  const low = minimum !== undefined ? `from ${minimum}`
    : exclusiveMinimum !== undefined ? `above ${exclusiveMinimum}` : "";
  const high = maximum !== undefined && maximum < 1e9 ? `to ${maximum}` : "";
  const words = [low, high].filter(Boolean).join(" ");
  return words && `(${words})`;
}
