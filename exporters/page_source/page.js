"use strict";
// The page: unpacks the field, draws it by march.glsl, and moves the camera.

const header = JSON.parse(document.getElementById("header").textContent);
const canvas = document.getElementById("view"), notice = document.getElementById("notice");
const QUALITIES = [["Full", 1], ["Half", 0.5], ["Quarter", 0.25]];
// Milliseconds of drawing per frame, while the camera moves and while it stands still; and how long
// it stands still before the image is refined.
const MOVING_TIME = 60, STILL_TIME = 30, REST = 120;
// Most parts in which an image is drawn: each costs time of its own, much without a GPU.
const MAX_PARTS = 64;

function fail(message) {
  notice.textContent = message;
  notice.hidden = false;
  throw new Error(message);
}

// Data.

async function unpack() {
  if (!window.DecompressionStream) {
    fail("This browser cannot unpack the file (it has no DecompressionStream); use a newer one.");
  }
  const text = atob(document.getElementById("data").textContent);
  const bytes = Uint8Array.from(text, c => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
}

// Drawing.

class Painter {
  constructor(gl, buffer) {
    this.gl = gl;
    const arrays = header.arrays;
    const part = (Type, name) => new Type(
      buffer, arrays[name].offset, arrays[name].bytes / Type.BYTES_PER_ELEMENT);
    this.march = this.program(document.getElementById("march").textContent.trim()
      .replace("//CONSTANTS//", header.constants));
    this.show = this.program(document.getElementById("show").textContent.trim());
    this.table = this.texture(part(Int8Array, "table"), header.widths.table, header.channels);
    this.params = this.texture(part(Float32Array, "params"), header.widths.params, 4, true);
    this.skipped = this.volume(part(Uint8Array, "skip"), header.grid);
    gl.bindVertexArray(gl.createVertexArray());
  }

  program(fragment) {
    const gl = this.gl, program = gl.createProgram();
    const vertex = "#version 300 es\nvoid main() { gl_Position = vec4(" +
      "vec2(gl_VertexID == 1 ? 3 : -1, gl_VertexID == 2 ? 3 : -1), 0, 1); }";
    for (const [kind, source] of [[gl.VERTEX_SHADER, vertex], [gl.FRAGMENT_SHADER, fragment]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, source);
      gl.compileShader(shader);
      gl.attachShader(program, shader);
      if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS) && !gl.isContextLost()) {
        fail("This graphics driver refuses the shader: " + gl.getShaderInfoLog(shader));
      }
    }
    gl.linkProgram(program);
    if (!gl.getProgramParameter(program, gl.LINK_STATUS)) {
      fail("This graphics driver refuses the program: " + gl.getProgramInfoLog(program));
    }
    const places = {};
    return {program, at: name => places[name] ??= gl.getUniformLocation(program, name)};
  }

  texture(values, width, channels, isFloat = false) {
    const gl = this.gl, height = values.length / channels / width, texture = gl.createTexture();
    const formats = {1: gl.RED, 2: gl.RG, 4: gl.RGBA};
    const signed = {1: gl.R8_SNORM, 2: gl.RG8_SNORM, 4: gl.RGBA8_SNORM};
    if (height > gl.getParameter(gl.MAX_TEXTURE_SIZE)) {
      fail("The field is too large for this graphics processor.");
    }
    gl.bindTexture(gl.TEXTURE_2D, texture);
    gl.pixelStorei(gl.UNPACK_ALIGNMENT, 1);
    gl.texImage2D(gl.TEXTURE_2D, 0, isFloat ? gl.RGBA32F : signed[channels], width, height, 0,
      formats[channels], isFloat ? gl.FLOAT : gl.BYTE, values);
    this.sample(gl.TEXTURE_2D, gl.NEAREST);
    return texture;
  }

  volume(values, side) {
    const gl = this.gl, texture = gl.createTexture();
    gl.bindTexture(gl.TEXTURE_3D, texture);
    gl.texImage3D(gl.TEXTURE_3D, 0, gl.R8UI, side, side, side, 0, gl.RED_INTEGER,
      gl.UNSIGNED_BYTE, values);
    this.sample(gl.TEXTURE_3D, gl.NEAREST);
    return texture;
  }

  sample(target, filter) {
    const gl = this.gl;
    for (const name of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) {
      gl.texParameteri(target, name, filter);
    }
    for (const name of [gl.TEXTURE_WRAP_S, gl.TEXTURE_WRAP_T]) {
      gl.texParameteri(target, name, gl.CLAMP_TO_EDGE);
    }
  }

  // An image with a texture of colours and one of distances.
  image(width, height) {
    const gl = this.gl, image = {width, height, frame: gl.createFramebuffer(), textures: []};
    gl.bindFramebuffer(gl.FRAMEBUFFER, image.frame);
    for (let i = 0; i < 2; i++) {
      const texture = gl.createTexture();
      gl.bindTexture(gl.TEXTURE_2D, texture);
      gl.texStorage2D(gl.TEXTURE_2D, 1, gl.RGBA8, width, height);
      this.sample(gl.TEXTURE_2D, i ? gl.NEAREST : gl.LINEAR);
      gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0 + i, gl.TEXTURE_2D, texture, 0);
      image.textures.push(texture);
    }
    gl.drawBuffers([gl.COLOR_ATTACHMENT0, gl.COLOR_ATTACHMENT1]);
    return image;
  }

  release(image) {
    if (!image) return;
    image.textures.forEach(texture => this.gl.deleteTexture(texture));
    this.gl.deleteFramebuffer(image.frame);
  }

  bind(unit, target, texture, program, name) {
    const gl = this.gl;
    gl.activeTexture(gl.TEXTURE0 + unit);
    gl.bindTexture(target, texture);
    gl.uniform1i(program.at(name), unit);
  }

  // Draw rows first to last of an image; camera: see `Walker.camera`. Waits until they are drawn.
  draw(image, camera, first, last) {
    const gl = this.gl, {program, at} = this.march;
    gl.bindFramebuffer(gl.FRAMEBUFFER, image.frame);
    gl.viewport(0, 0, image.width, image.height);
    gl.enable(gl.SCISSOR_TEST);
    gl.scissor(0, first, image.width, last - first);
    gl.useProgram(program);
    this.bind(0, gl.TEXTURE_2D, this.table, this.march, "table");
    this.bind(1, gl.TEXTURE_2D, this.params, this.march, "params");
    this.bind(2, gl.TEXTURE_3D, this.skipped, this.march, "skipped");
    gl.uniformMatrix3fv(at("rotation"), false, camera.rotation);
    gl.uniform3fv(at("position"), camera.position);
    gl.uniform1f(at("focal"), camera.focal * image.width);
    gl.uniform2f(at("principal"), image.width / 2, image.height / 2);
    gl.drawArrays(gl.TRIANGLES, 0, 3);
    gl.disable(gl.SCISSOR_TEST);
    gl.readBuffer(gl.COLOR_ATTACHMENT0);
    gl.readPixels(0, first, 1, 1, gl.RGBA, gl.UNSIGNED_BYTE, new Uint8Array(4));
  }

  read(image, attachment) {
    const gl = this.gl, bytes = new Uint8Array(4 * image.width * image.height);
    gl.bindFramebuffer(gl.FRAMEBUFFER, image.frame);
    gl.readBuffer(gl.COLOR_ATTACHMENT0 + attachment);
    gl.readPixels(0, 0, image.width, image.height, gl.RGBA, gl.UNSIGNED_BYTE, bytes);
    return bytes;
  }

  // Show the finished rows of the fine image, and the coarse one elsewhere.
  present(coarse, fine, finished, camera, mode, range) {
    const gl = this.gl, {program, at} = this.show;
    gl.bindFramebuffer(gl.FRAMEBUFFER, null);
    gl.viewport(0, 0, canvas.width, canvas.height);
    gl.useProgram(program);
    ["coarse", "coarseDistance"].forEach((name, i) =>
      this.bind(i, gl.TEXTURE_2D, coarse.textures[i], this.show, name));
    ["fine", "fineDistance"].forEach((name, i) =>
      this.bind(2 + i, gl.TEXTURE_2D, fine.textures[i], this.show, name));
    gl.uniform2f(at("canvas"), canvas.width, canvas.height);
    gl.uniform1f(at("finished"), finished);
    gl.uniform1i(at("mode"), mode);
    gl.uniform2fv(at("range"), range);
    gl.uniformMatrix3fv(at("rotation"), false, camera.rotation);
    gl.uniform1f(at("focal"), camera.focal);
    gl.drawArrays(gl.TRIANGLES, 0, 3);
  }
}

// log2 of the nearest and farthest surfaces in the bytes of an image's distances.
function distanceRange(bytes) {
  const found = [];
  for (let i = 0; i < bytes.length; i += 4) {
    if (bytes[i + 3] < 128) continue;
    const value = (bytes[i] << 16) | (bytes[i + 1] << 8) | bytes[i + 2];
    found.push(value / 16777215 * 64 - 32);
  }
  if (!found.length) return [0, 1];
  found.sort((a, b) => a - b);
  return [found[Math.floor(0.01 * found.length)], found[Math.floor(0.99 * (found.length - 1))]];
}

// The camera.

const add = (a, b, scale = 1) => a.map((x, i) => x + scale * b[i]);
const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
const unit = a => a.map(x => x / (Math.hypot(...a) || 1));
const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2],
                         a[0] * b[1] - a[1] * b[0]];

function turn(v, axis, angle) {
  const c = Math.cos(angle), s = Math.sin(angle), along = dot(v, axis) * (1 - c);
  const side = cross(axis, v);
  return v.map((x, i) => c * x + s * side[i] + along * axis[i]);
}

class Walker {
  constructor() {
    this.reset();
  }

  reset() {
    const {position, right, above, back, focus} = header.camera;
    Object.assign(this, {position, right, above, back, focus});
  }

  // rotation: columns right, above, back; focal: in widths of the image, in which all of the first
  // view has room.
  camera(width, height) {
    const {focal, aspect} = header.camera;
    return {position: this.position, rotation: [...this.right, ...this.above, ...this.back],
            focal: focal * Math.min(1, aspect * height / width)};
  }

  // Turn about a point, or about the camera itself.
  rotate(across, down, centre) {
    for (const [axis, angle] of [[header.camera.up, across], [this.right, down]]) {
      const back = turn(this.back, axis, angle);
      if (axis === this.right && Math.abs(dot(back, header.camera.up)) > 0.995) continue;
      this.position = add(centre, turn(add(this.position, centre, -1), axis, angle));
      this.back = unit(back);
      this.right = unit(turn(this.right, axis, angle));
    }
    this.above = unit(cross(this.back, this.right));
    this.right = unit(cross(this.above, this.back));
  }

  orbit(across, down) {
    this.rotate(across, down, this.focus);
  }

  look(across, down) {
    this.rotate(across, down, this.position);
    this.focus = add(this.position, this.back, -this.distance());
  }

  distance() {
    return Math.hypot(...add(this.focus, this.position, -1));
  }

  move(right, above, back) {
    const distance = this.distance(), shift = [0, 1, 2].map(i =>
      distance * (right * this.right[i] + above * this.above[i] + back * this.back[i]));
    this.position = add(this.position, shift);
    this.focus = add(this.focus, shift);
  }

  approach(factor) {
    this.position = add(this.focus, add(this.position, this.focus, -1), factor);
  }
}

// The page.

class Page {
  constructor(painter) {
    this.painter = painter;
    this.walker = new Walker();
    this.mode = 0;
    this.quality = 0;
    this.range = [0, 1];
    this.keys = new Set();
    this.coarseness = 8;
    this.changed();
    this.listen();
    requestAnimationFrame(time => this.frame(time));
  }

  // Begin again, with a coarse image.
  changed() {
    this.lastChange = performance.now();
    this.scale = this.rows = 0;
  }

  fit() {
    const scale = Math.min(window.devicePixelRatio || 1, 2) * QUALITIES[this.quality][1];
    const width = Math.max(1, Math.round(canvas.clientWidth * scale));
    const height = Math.max(1, Math.round(canvas.clientHeight * scale));
    if (canvas.width === width && canvas.height === height) return;
    canvas.width = width;
    canvas.height = height;
    this.changed();
  }

  frame(time) {
    this.fly(time);
    this.fit();
    const camera = this.walker.camera(canvas.width, canvas.height);
    if (!this.scale) this.drawCoarse(camera);
    else if (this.scale > 1 && performance.now() - this.lastChange > REST) this.refine(camera);
    requestAnimationFrame(next => this.frame(next));
  }

  // An image whose pixels are `scale` of the canvas wide; `old` may be used again.
  imageAt(scale, old) {
    const width = Math.ceil(canvas.width / scale), height = Math.ceil(canvas.height / scale);
    if (old && old.width === width && old.height === height) return old;
    this.painter.release(old);
    return this.painter.image(width, height);
  }

  drawCoarse(camera) {
    this.scale = this.coarseness;
    this.coarse = this.imageAt(this.scale, this.coarse);
    const begin = performance.now();
    this.painter.draw(this.coarse, camera, 0, this.coarse.height);
    const passed = performance.now() - begin;
    const wanted = this.coarseness * Math.sqrt(passed / MOVING_TIME);
    this.coarseness = Math.min(32, Math.max(2, 0.5 * (this.coarseness + wanted)));
    this.msPerRow = passed / this.coarse.height;
    this.range = distanceRange(this.painter.read(this.coarse, 1));
    this.present(camera);
    notice.hidden = true;
  }

  // Draw more rows of an image with pixels a third as wide; a finished one becomes the coarse one.
  refine(camera) {
    const begin = performance.now(), next = Math.max(1, this.scale / 3);
    this.fine = this.imageAt(next, this.fine);
    while (this.rows < this.fine.height && performance.now() - begin < STILL_TIME) {
      const count = Math.max(Math.ceil(this.fine.height / MAX_PARTS),
        Math.round(STILL_TIME / 3 / this.msPerRow));
      const last = Math.min(this.fine.height, this.rows + count), start = performance.now();
      this.painter.draw(this.fine, camera, this.rows, last);
      this.msPerRow = Math.max(1e-3, (performance.now() - start) / (last - this.rows));
      this.rows = last;
    }
    if (this.rows === this.fine.height) {
      [this.coarse, this.fine] = [this.fine, this.coarse];
      this.scale = next;
      this.rows = 0;
    }
    this.present(camera);
  }

  present(camera) {
    const fine = this.rows ? this.fine : this.coarse;
    this.painter.present(this.coarse, fine, this.rows / fine.height, camera, this.mode,
      this.range);
  }

  // Pixels of a camera as base64 of RGBA bytes, row by row: for programs that drive the page.
  // camera: position, rotation (columns right, above, back), focal (in widths of the image).
  render(camera, width, height) {
    const image = this.painter.image(width, height);
    this.painter.draw(image, camera, 0, height);
    const bytes = this.painter.read(image, 0);
    this.painter.release(image);
    this.changed();
    let text = "";
    for (let i = 0; i < bytes.length; i += 32768) {
      text += String.fromCharCode(...bytes.subarray(i, i + 32768));
    }
    return btoa(text);
  }

  // Input.

  listen() {
    const pointers = new Map();
    canvas.addEventListener("pointerdown", event => {
      canvas.setPointerCapture(event.pointerId);
      pointers.set(event.pointerId, event);
      canvas.focus();
    });
    canvas.addEventListener("pointermove", event => {
      const before = pointers.get(event.pointerId);
      if (!before) return;
      pointers.set(event.pointerId, event);
      this.drag(before, event, [...pointers.values()]);
    });
    for (const name of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(name, event => pointers.delete(event.pointerId));
    }
    canvas.addEventListener("contextmenu", event => event.preventDefault());
    canvas.addEventListener("wheel", event => {
      event.preventDefault();
      this.walker.approach(Math.exp(0.001 * event.deltaY));
      this.changed();
    }, {passive: false});
    window.addEventListener("keydown", event => this.press(event.key.toLowerCase(), event));
    window.addEventListener("keyup", event => this.keys.delete(event.key.toLowerCase()));
    window.addEventListener("blur", () => this.keys.clear());
    for (const button of document.querySelectorAll("button")) {
      button.addEventListener("click", () => this.press(button.dataset.key));
    }
  }

  drag(before, now, pointers) {
    const scale = 1 / canvas.clientHeight;
    const dx = (now.clientX - before.clientX) * scale, dy = (now.clientY - before.clientY) * scale;
    if (pointers.length === 1 && now.buttons !== 2) {
      this.walker.orbit(-3 * dx, -3 * dy);
    } else {
      const each = 1 / pointers.length;
      this.walker.move(-dx * each, dy * each, 0);
      const other = pointers.find(pointer => pointer.pointerId !== now.pointerId);
      if (other) {
        const gap = p => Math.hypot(p.clientX - other.clientX, p.clientY - other.clientY) || 1;
        this.walker.approach(gap(before) / gap(now));
      }
    }
    this.changed();
  }

  press(key, event) {
    if (event && (event.ctrlKey || event.metaKey || event.altKey)) return;
    if ("123".includes(key)) {
      this.mode = Number(key) - 1;
      document.querySelectorAll("button").forEach(button =>
        button.classList.toggle("on", button.dataset.key === key));
      this.present(this.walker.camera(canvas.width, canvas.height));
    } else if (key === "q") {
      this.quality = (this.quality + 1) % QUALITIES.length;
      document.getElementById("quality").textContent = QUALITIES[this.quality][0];
    } else if (key === "r") {
      this.walker.reset();
      this.changed();
    } else if (key === "h") {
      const help = document.getElementById("help");
      help.hidden = !help.hidden;
    } else {
      this.keys.add(key);
    }
  }

  fly(time) {
    const seconds = Math.min(0.1, (time - (this.lastTime ?? time)) / 1000);
    this.lastTime = time;
    const pressed = (plus, minus) => this.keys.has(plus) - this.keys.has(minus);
    const move = [pressed("d", "a"), pressed("e", "c"), pressed("s", "w")];
    const look = [pressed("arrowleft", "arrowright"), pressed("arrowup", "arrowdown")];
    if (move.some(Boolean)) this.walker.move(...move.map(x => 0.6 * seconds * x));
    if (look.some(Boolean)) this.walker.look(...look.map(x => 0.9 * seconds * x));
    if ([...move, ...look].some(Boolean)) this.changed();
  }
}

async function main() {
  const gl = canvas.getContext("webgl2", {antialias: false, powerPreference: "high-performance",
                                          preserveDrawingBuffer: true});
  if (!gl) fail("This page needs WebGL 2, which this browser does not offer.");
  canvas.addEventListener("webglcontextlost", () =>
    fail("The graphics processor gave up; reload the page, and lower the resolution with Q."));
  window.page = new Page(new Painter(gl, await unpack()));
}

main().catch(error => fail(error.message));
