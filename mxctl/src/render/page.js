"use strict";
// Draws the graph out of the data. Every name came from the network: it becomes text, never markup.
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const EVERY = 2000;
  const byId = (id) => document.getElementById(id);
  let data = null;
  let chosen = null;
  let shown = null;

  const make = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
  const draw = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);
  const fill = (element, attributes, children) => {
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  };

  const key = (workload) => `${workload.kind === "unknown"} ${workload.name}`;

  function show() {
    const { graph, drawn } = data;
    byId("status").textContent =
      `${graph.workloads.length} workloads, ${graph.edges.length} edges of ${graph.entries} entries` +
      (graph.reading === "skywalking" ? ", as SkyWalking reads them" : "");
    byId("graph").replaceChildren(picture(graph, drawn));
    byId("edges").replaceChildren(...edgeRows(graph, drawn, () => true));
    byId("notes").replaceChildren(...graph.notes.map((note) => make("li", {}, `${note.count} x ${note.note}`)));
    details();
  }

  function picture(graph, drawn) {
    const tip = (id) => draw("marker", { id, viewBox: "0 0 8 8", refX: 8, refY: 4, markerWidth: 8, markerHeight: 8,
      orient: "auto", markerUnits: "userSpaceOnUse" }, draw("path", { d: "M0,0L8,4L0,8Z" }));
    // It shrinks to the window as far as it stays legible.
    const width = Math.max(Math.min(drawn.width, byId("graph").clientWidth), drawn.width * 0.6);
    const svg = draw("svg", { viewBox: `0 0 ${drawn.width} ${drawn.height}`, width },
      draw("defs", {}, tip("tip"), tip("failing-tip")));
    for (const edge of drawn.edges) {
      svg.append(draw("g", { class: edge.failing ? "edge failing" : "edge" },
        draw("path", { d: edge.line.path, "marker-end": edge.failing ? "url(#failing-tip)" : "url(#tip)" }),
        draw("text", { x: edge.line.label[0], y: edge.line.label[1] }, edge.text)));
    }
    graph.workloads.forEach((workload, number) => {
      const box = drawn.workloads[number];
      const isChosen = chosen === key(workload) ? " chosen" : "";
      const group = draw("g", { class: `workload ${box.class}${isChosen}`, tabindex: 0, role: "button",
        transform: `translate(${box.place[0]},${box.place[1]})` },
        draw("title", {}, workload.name), draw("path", { d: box.outline }),
        draw("text", { y: -3 }, box.short), draw("text", { y: 13, class: "kind" }, box.kind));
      const choose = () => { chosen = key(workload); show(); };
      group.addEventListener("click", choose);
      group.addEventListener("keydown", (event) => { if (event.key === "Enter") choose(); });
      svg.append(group);
    });
    return svg;
  }

  const figure = (tally, name) => (tally ? String(tally[name]) : "-");
  const milliseconds = (tally, name) => (tally && tally.latency_ms ? tally.latency_ms[name].toFixed(2) : "-");

  function edgeRows(graph, drawn, isShown) {
    const head = ["caller", "callee", "seen by", "calls", "errors", "4xx", "p50 ms", "p90 ms", "p99 ms"];
    const cell = (tag, text, column) => make(tag, column > 2 ? { class: "figure" } : {}, text);
    const rows = [make("tr", {}, ...head.map((text, column) => cell("th", text, column)))];
    graph.edges.forEach((edge, number) => {
      if (!isShown(edge)) return;
      const { client, server } = edge;
      const sides = (name) => (client && server && client[name] !== server[name]
        ? `${figure(client, name)} / ${figure(server, name)}` : figure(client || server, name));
      const main = client && server && server.calls > client.calls ? server : client || server;
      const texts = [graph.workloads[edge.from].name, graph.workloads[edge.to].name, drawn.edges[number].seen_by,
        sides("calls"), sides("errors"), sides("client_errors"),
        milliseconds(main, "p50"), milliseconds(main, "p90"), milliseconds(main, "p99")];
      rows.push(make("tr", {}, ...texts.map((text, column) => cell("td", text, column))));
    });
    return rows;
  }

  function details() {
    const { graph, drawn } = data;
    const number = graph.workloads.findIndex((workload) => key(workload) === chosen);
    if (number < 0) return;
    const workload = graph.workloads[number];
    const parts = [make("h2", { id: "name" }, workload.name), make("p", {}, drawn.workloads[number].kind)];
    for (const instance of workload.instances) {
      const rows = [["instance", `${instance.name} (${instance.kind})`]];
      if (instance.id) rows.push(["id", instance.id]);
      for (const [name, value] of Object.entries(instance.metadata)) {
        const isMap = value !== null && typeof value === "object" && !Array.isArray(value);
        const text = isMap ? Object.entries(value).map((pair) => pair.join("=")).join("\n") : String(value);
        rows.push([name, ...text.split("\n")]);
      }
      parts.push(make("table", { class: "metadata" }, ...rows.map(([name, ...lines]) =>
        make("tr", {}, make("th", {}, name), make("td", {}, ...lines.map((line) => make("div", {}, line)))))));
    }
    if (workload.further_instances) parts.push(make("p", {}, "and further instances"));
    for (const [title, end] of [["Called by", "to"], ["Calls", "from"]]) {
      const lines = graph.edges.map((edge, at) => [edge, drawn.edges[at]]).filter(([edge]) => edge[end] === number);
      const other = end === "to" ? "from" : "to";
      if (lines.length) parts.push(make("h2", {}, title), make("ul", { class: `edges-${end}` }, ...lines.map(
        ([edge, line]) => make("li", {}, `${graph.workloads[edge[other]].name}: ${line.text}, seen by ${line.seen_by}`))));
    }
    byId("details").replaceChildren(...parts);
  }

  async function follow() {
    try {
      const reply = await fetch("topology.json", { cache: "no-store" });
      if (!reply.ok) throw new Error(`status ${reply.status}`);
      const text = await reply.text();
      // What has not changed keeps its focus and its selection.
      if (text !== shown) {
        data = JSON.parse(text);
        show();
        shown = text;
      }
    } catch (error) {
      shown = null;
      byId("status").textContent = `not live: ${error.message}`;
    }
    setTimeout(follow, EVERY);
  }

  if (document.documentElement.dataset.live === "true") {
    follow();
  } else {
    data = JSON.parse(byId("data").textContent);
    show();
  }
})();
