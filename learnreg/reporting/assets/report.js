"use strict";
(async () => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const get = (id) => document.getElementById(id);
  const is3d = data.shape.length === 3;
  const [nx, ny, nz] = [data.shape[0], data.shape[1], is3d ? data.shape[2] : 1];
  const size = [nx, ny, nz];
  const spacing = [...data.spacing, 1].slice(0, 3);

  async function unpacked(text) {
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).arrayBuffer();
  }

  const volumes = {};
  for (const [name, text] of Object.entries(data.volumes)) volumes[name] = new Uint8Array(await unpacked(text));
  const lattice = new Int16Array(await unpacked(data.lattice.data));

  // a plane across axis n: u runs across the page, v down the page; v is mirrored where it points to the head
  const PLANES = [[2, 0, 1, false], [1, 0, 2, true], [0, 1, 2, true]]
    .map(([n, u, v, up]) => ({ n, u, v, up, slice: Math.floor(size[n] / 2) }))
    .filter((p) => size[p.u] > 1 && size[p.v] > 1 && (is3d || p.n === 2));
  const stride = [1, nx, nx * ny];
  const scale = 400 / Math.max(...PLANES.flatMap((p) => [size[p.u] * spacing[p.u], size[p.v] * spacing[p.v]]));
  let timer = null;
  let showsSecond = false;

  for (const select of [get("first"), get("second")])
    for (const [value, text] of [["fixed", "fixed"], ["moving", `moving, ${data.start}`], ["warped", "warped"]])
      select.add(new Option(text, value));
  get("first").value = "fixed";
  get("second").value = "warped";
  get("labels-box").hidden = !("fixed labels" in volumes || "moving labels" in volumes);
  get("landmarks-box").hidden = !data.landmarks.fixed;

  function diverging(t) { // blue to white to red, t in [-1, 1]
    const fade = 1 - Math.abs(t);
    return t < 0 ? [255 * fade, 255 * fade, 255] : [255, 255 * fade, 255 * fade];
  }

  function color(first, second, mode, opacity, square) {
    if (mode === "difference") return diverging((second - first) / 255);
    if (mode === "checkerboard") return Array(3).fill(square ? second : first);
    return Array(3).fill(first * (1 - opacity) + second * opacity);
  }

  function compare(plane) {
    const { n, u, v, up, slice } = plane;
    const [w, h] = [size[u], size[v]];
    const image = new ImageData(w, h);
    const [first, second] = [volumes[get("first").value], volumes[get("second").value]];
    const blinking = timer !== null;
    const mode = blinking ? "blend" : get("mode").value;
    const opacity = blinking ? Number(showsSecond) : get("opacity").value / 100;
    const side = Math.max(w * spacing[u], h * spacing[v]) / 8;
    for (let row = 0; row < h; row++) {
      const y = up ? h - 1 - row : row;
      for (let x = 0; x < w; x++) {
        const at = slice * stride[n] + y * stride[v] + x * stride[u];
        const square = (Math.floor((x * spacing[u]) / side) + Math.floor((row * spacing[v]) / side)) % 2;
        let rgb = color(first[at], second[at], mode, opacity, square);
        if (get("jacobian").checked) {
          const value = volumes.Jacobian[at];
          const over = value === 0 ? [255, 0, 255] : diverging(-(value - 127) / 127);
          rgb = rgb.map((c, k) => 0.45 * c + 0.55 * over[k]);
        }
        image.data.set([...rgb, 255], 4 * (row * w + x));
      }
    }
    return image;
  }

  const place = (plane, x, y) => [
    (x + 0.5) * spacing[plane.u] * scale,
    ((plane.up ? size[plane.v] - 1 - y : y) + 0.5) * spacing[plane.v] * scale,
  ];

  function drawGrid(context, plane) {
    const { n, u, v, slice } = plane;
    const shape = [...data.lattice.shape, 1].slice(0, 3);
    const channels = data.shape.length;
    const step = data.lattice.step;
    const layer = Math.min(shape[n] - 1, Math.round(slice / step));
    const strides = [1, shape[0], shape[0] * shape[1]];
    const node = (i, j) => {
      const at = channels * (layer * strides[n] + i * strides[u] + j * strides[v]);
      return place(plane, i * step + lattice[at + u] / data.lattice.unit, j * step + lattice[at + v] / data.lattice.unit);
    };
    context.strokeStyle = "#35c2ff";
    context.lineWidth = 0.8;
    context.beginPath();
    for (let j = 0; j < shape[v]; j++)
      for (let i = 0; i < shape[u]; i++) {
        for (const [di, dj] of [[1, 0], [0, 1]])
          if (i + di < shape[u] && j + dj < shape[v]) {
            context.moveTo(...node(i, j));
            context.lineTo(...node(i + di, j + dj));
          }
      }
    context.stroke();
  }

  function drawOutline(context, plane, name, dashed) {
    const labels = volumes[`${name} labels`];
    if (!labels) return;
    const { n, u, v, slice } = plane;
    const at = (x, y) => labels[slice * stride[n] + y * stride[v] + x * stride[u]];
    context.lineWidth = dashed ? 1 : 1.6;
    for (let y = 0; y < size[v]; y++)
      for (let x = 0; x < size[u]; x++)
        for (const [dx, dy] of [[1, 0], [0, 1]]) {
          if (x + dx >= size[u] || y + dy >= size[v]) continue;
          const [here, there] = [at(x, y), at(x + dx, y + dy)];
          if (here === there || (dashed && (x + y) % 2)) continue;
          context.strokeStyle = `hsl(${(Math.max(here, there) * 67) % 360} 90% ${dashed ? 75 : 55}%)`;
          context.beginPath();
          context.moveTo(...place(plane, x + dx / 2 - dy / 2, y + dy / 2 - dx / 2));
          context.lineTo(...place(plane, x + dx / 2 + dy / 2, y + dy / 2 + dx / 2));
          context.stroke();
        }
  }

  function drawLandmarks(context, plane) {
    const there = data.landmarks[{ moving: "before", warped: "after" }[get("second").value]];
    data.landmarks.fixed.forEach((point, k) => {
      if (point.includes(null)) return;
      const away = is3d ? Math.abs(point[plane.n] - plane.slice) * spacing[plane.n] : 0;
      context.globalAlpha = away <= 2 * spacing[plane.n] ? 1 : data.landmarks.fixed.length > 40 ? 0 : 0.3;
      const from = place(plane, point[plane.u], point[plane.v]);
      if (there && !there[k].includes(null)) {
        context.strokeStyle = "#0ff";
        context.lineWidth = 1.2;
        context.beginPath();
        context.moveTo(...from);
        context.lineTo(...place(plane, there[k][plane.u], there[k][plane.v]));
        context.stroke();
      }
      context.fillStyle = "#ff4040";
      context.beginPath();
      context.arc(...from, 3, 0, 2 * Math.PI);
      context.fill();
    });
    context.globalAlpha = 1;
  }

  function drawLetters(context, plane, width, height) {
    if (!data.letters.length) return;
    const [across, down] = [data.letters[plane.u], data.letters[plane.v]];
    context.font = "bold 14px sans-serif";
    context.fillStyle = "#ffe14d";
    context.textAlign = "center";
    context.textBaseline = "middle";
    context.fillText(across[0], 10, height / 2);
    context.fillText(across[1], width - 10, height / 2);
    context.fillText(plane.up ? down[1] : down[0], width / 2, 11);
    context.fillText(plane.up ? down[0] : down[1], width / 2, height - 11);
  }

  function draw(plane) {
    const context = plane.canvas.getContext("2d");
    const { width, height } = plane.canvas;
    const small = new OffscreenCanvas(size[plane.u], size[plane.v]);
    small.getContext("2d").putImageData(compare(plane), 0, 0);
    context.drawImage(small, 0, 0, width, height);
    const name = get("second").value;
    if (get("labels").checked) {
      drawOutline(context, plane, "fixed", false);
      if (name !== "fixed") drawOutline(context, plane, name, true);
    }
    if (get("grid").checked) drawGrid(context, plane);
    if (data.landmarks.fixed && get("landmarks").checked) drawLandmarks(context, plane);
    drawLetters(context, plane, width, height);
    const position = data.first[plane.n] + plane.slice * data.step[plane.n];
    plane.caption.textContent = is3d
      ? `${data.planes[plane.n]}, ${"xyz"[plane.n]} = ${position.toFixed(1)} mm`
      : "the image as it is stored";
  }

  const drawAll = () => {
    PLANES.forEach(draw);
    document.body.dataset.shown = timer === null ? "both" : showsSecond ? "B" : "A";
    const colors = get("jacobian").checked
      ? "Jacobian: red shrinks from fixed to moving, white keeps its volume, blue expands, magenta folds. " : "";
    const outlines = get("labels-box").hidden ? "" : "Labels: solid lines fixed, light dotted lines B. ";
    const dots = get("landmarks-box").hidden ? "" : "Landmarks: dots fixed, lines to the landmark of B. ";
    get("legend").textContent = colors + outlines + dots;
  };

  for (const plane of PLANES) {
    const box = document.createElement("figure");
    box.className = "plane";
    plane.canvas = document.createElement("canvas");
    plane.canvas.width = Math.max(1, Math.round(size[plane.u] * spacing[plane.u] * scale));
    plane.canvas.height = Math.max(1, Math.round(size[plane.v] * spacing[plane.v] * scale));
    plane.canvas.dataset.plane = data.planes[plane.n];
    plane.caption = document.createElement("figcaption");
    box.append(plane.canvas, plane.caption);
    if (size[plane.n] > 1) {
      const slider = document.createElement("input");
      Object.assign(slider, { type: "range", min: 0, max: size[plane.n] - 1, value: plane.slice, className: "slice" });
      slider.setAttribute("aria-label", `slice of the ${data.planes[plane.n]} plane`);
      slider.addEventListener("input", () => { plane.slice = Number(slider.value); drawAll(); });
      box.append(slider);
    }
    get("planes").append(box);
  }
  for (const id of ["first", "second", "mode", "opacity", "grid", "jacobian", "labels", "landmarks"])
    get(id).addEventListener("input", drawAll);
  get("blink").addEventListener("click", () => {
    if (timer === null) timer = setInterval(() => { showsSecond = !showsSecond; drawAll(); }, 600);
    else { clearInterval(timer); timer = null; }
    get("blink").setAttribute("aria-pressed", String(timer !== null));
    drawAll();
  });
  drawAll();

  function nifti(volume) { // a NIfTI-1 file of bytes
    const file = new Uint8Array(352 + volume.length);
    const header = new DataView(file.buffer);
    header.setInt32(0, 348, true);
    [3, nx, ny, nz, 1, 1, 1, 1].forEach((n, k) => header.setInt16(40 + 2 * k, n, true));
    header.setInt16(70, 2, true); // uint8
    header.setInt16(72, 8, true);
    [1, ...spacing].forEach((s, k) => header.setFloat32(76 + 4 * k, s, true));
    header.setFloat32(108, 352, true);
    header.setFloat32(112, 1, true);
    file[123] = 2; // mm
    header.setFloat32(124, 255, true);
    header.setInt16(254, 1, true); // scanner coordinates
    data.ras.slice(0, 3).flat().forEach((value, k) => header.setFloat32(280 + 4 * k, value, true));
    file.set([110, 43, 49, 0], 344);
    file.set(volume, 352);
    return file.buffer;
  }

  async function openNiivue() {
    get("open-niivue").disabled = true;
    const code = new TextDecoder().decode(await unpacked(get("library").textContent.trim()));
    const script = document.createElement("script");
    script.textContent = code;
    document.body.append(script);
    get("niivue-box").hidden = false;
    const viewer = new window.niivue.Niivue({ isRadiologicalConvention: true, logLevel: "error", dragAndDropEnabled: false });
    await viewer.attachToCanvas(get("niivue"));
    await viewer.loadFromArrayBuffer(nifti(volumes.fixed), "fixed.nii");
    await viewer.loadFromArrayBuffer(nifti(volumes.warped), "warped.nii");
    viewer.setColormap(viewer.volumes[1].id, "red");
    viewer.setMultiplanarLayout(3);
    viewer.setSliceType(viewer.sliceTypeMultiplanar);
    const fade = () => viewer.setOpacity(1, get("niivue-opacity").value / 100);
    get("niivue-opacity").addEventListener("input", fade);
    fade();
    document.body.dataset.niivue = "ready";
  }

  if (get("open-niivue"))
    get("open-niivue").addEventListener("click", () => openNiivue().catch((error) => {
      get("niivue-error").textContent = `The 3-D viewer needs WebGL 2, which this browser does not offer here (${error}).`;
    }));
  document.body.dataset.ready = "true";
})();
