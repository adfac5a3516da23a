// What circuit-tracer's page expects of its libraries and the published ones do not do.
window.plainText = (text) => String(text ?? "").replace(/[&<>"'`]/g, (one) => `&#${one.charCodeAt(0)};`);

// Groups by the key itself, not by what it is written as: links are grouped by the objects they join.
d3.nestBy = (list, key) => d3.groups(list, key).map(([name, group]) => Object.assign(group, { key: name }));

const conventions = d3.conventions;
d3.conventions = (options) => {
  const made = conventions(options);
  made.drawAxis = (svg = made.svg) => d3.drawAxis({ ...made, svg });
  return made;
};
