#version 300 es
// Colour and distance of one pixel per fragment: the loop of fields/march.py. Rows of the target
// count downwards, as those of an image.
precision highp float;
precision highp int;
precision highp sampler2D;
precision highp usampler3D;

//CONSTANTS//

uniform sampler2D table, params;
uniform usampler3D skipped;
uniform mat3 rotation;
uniform vec3 position;
// Of the image in pixels: focal length and principal point.
uniform float focal;
uniform vec2 principal;

layout(location = 0) out vec4 colour;
layout(location = 1) out vec4 distanceBytes;

const int W = WIDTH / 4;

float safeExp(float x) { return exp(clamp(x, -87.0, 88.0)); }

// Networks.

vec4 param(int index) { return texelFetch(params, ivec2(index % PARAMS_WIDTH, index / PARAMS_WIDTH), 0); }

void addProduct(int rows, int inputs, int offset, in vec4 x[W], inout vec4 y[W]) {
  int n = inputs / 4, at = offset / 4;
  for (int o = 0; o < rows / 4; o++, at += inputs) {
    vec4 sum = y[o];
    for (int i = 0; i < n; i++) {
      sum += vec4(dot(param(at + i), x[i]), dot(param(at + n + i), x[i]),
                  dot(param(at + 2 * n + i), x[i]), dot(param(at + 3 * n + i), x[i]));
    }
    y[o] = sum;
  }
}

// Features.

struct Axis { uvec2 cells; vec2 weights; };

Axis axisOf(float coordinate, int resolution, bool dense) {
  float at = clamp(coordinate, 0.0, 1.0) * float(resolution) - 0.5;
  int low = int(floor(at)), high = low + 1;
  float upper = at - float(low);
  vec2 weights = vec2(1.0 - upper, upper);
  if (dense) {
    weights *= vec2(low >= 0, high < resolution);
    low = max(low, 0);
    high = min(high, resolution - 1);
  }
  return Axis(uvec2(low, high), weights);
}

void addEntry(uint entry, float weight, inout vec4 sums[TEXELS]) {
  for (int k = 0; k < TEXELS; k++) {
    int texel = int(entry) * TEXELS + k;
    sums[k] += weight * texelFetch(table, ivec2(texel % TABLE_WIDTH, texel / TABLE_WIDTH), 0);
  }
}

void encode(vec3 point, float std, out vec4 x[W]) {
  float features[4 * W];
  for (int i = 0; i < 4 * W; i++) features[i] = 0.0;
  int row = 0;
  for (int level = 0; level < LEVELS; level++) {
    int resolution = RESOLUTIONS[level];
    uint first = uint(OFFSETS[level]), size = uint(SIZES[level]), n = uint(resolution);
    bool dense = size == n * n * n;
    float weight = 1.0;
    if (DOWNWEIGHT) {
      float cells = std * float(resolution);
      weight = sqrt(1.0 - safeExp(-0.15915494 / max(cells * cells, 1e-30)));
    }
    Axis a = axisOf(point.x, resolution, dense);
    Axis b = axisOf(point.y, resolution, dense);
    Axis c = axisOf(point.z, resolution, dense);
    vec4 sums[TEXELS];
    for (int k = 0; k < TEXELS; k++) sums[k] = vec4(0);
    for (int corner = 0; corner < 8; corner++) {
      int i = corner & 1, j = (corner >> 1) & 1, k = corner >> 2;
      uint entry = dense ? (a.cells[i] * n + b.cells[j]) * n + c.cells[k]
        : (a.cells[i] ^ (b.cells[j] * PRIME_Y) ^ (c.cells[k] * PRIME_Z)) & (size - 1u);
      addEntry(first + entry, a.weights[i] * b.weights[j] * c.weights[k], sums);
    }
    for (int f = 0; f < FEATURES; f++) features[row++] = weight * SCALES[level] * sums[f / 4][f & 3];
    if (APPEND_SCALE) features[row++] = weight;
  }
  for (int i = 0; i < W; i++) {
    x[i] = vec4(features[4 * i], features[4 * i + 1], features[4 * i + 2], features[4 * i + 3]);
  }
}

// The trunk's output, and the density.
float query(vec3 point, float std, out vec4 hidden[W]) {
  encode(point, std, hidden);
  for (int k = 0; k < TRUNK_LAYERS; k++) {
    int rows = TRUNK[4 * k], inputs = TRUNK[4 * k + 1], bias = TRUNK[4 * k + 3];
    vec4 y[W];
    for (int o = 0; o < W; o++) y[o] = o < rows / 4 ? param(bias / 4 + o) : vec4(0);
    addProduct(rows, inputs, TRUNK[4 * k + 2], hidden, y);
    for (int o = 0; o < W; o++) hidden[o] = max(y[o], 0.0);
  }
  float density = param(DENSITY_BIAS / 4).x;
  for (int i = 0; i < (DENSITY_ROWS + 3) / 4; i++) {
    density += dot(param(DENSITY_OFFSET / 4 + i), hidden[i]);
  }
  return safeExp(density);
}

// The terms of the view branch that depend on the direction.
void directionTerms(vec3 viewdir, out vec4 terms[TERMS / 4 + 1]) {
  float inputs[DIRECTION_INPUTS];
  for (int i = 0; i < DIRECTION_INPUTS; i++) inputs[i] = 0.0;
  for (int axis = 0; axis < 3; axis++) {
    inputs[axis] = viewdir[axis];
    for (int degree = 0; degree < VIEW_DEG; degree++) {
      float angle = viewdir[axis] * float(1 << degree);
      inputs[3 + 3 * degree + axis] = sin(angle);
      inputs[3 + 3 * (VIEW_DEG + degree) + axis] = cos(angle);
    }
  }
  int n = DIRECTION_INPUTS / 4;
  for (int o = 0; o < TERMS / 4; o++) {
    vec4 sum = param(TERMS_BIAS / 4 + o);
    for (int i = 0; i < n; i++) {
      vec4 v = vec4(inputs[4 * i], inputs[4 * i + 1], inputs[4 * i + 2], inputs[4 * i + 3]);
      int at = TERMS_WEIGHT / 4 + 4 * o * n + i;
      sum += vec4(dot(param(at), v), dot(param(at + n), v), dot(param(at + 2 * n), v),
                  dot(param(at + 3 * n), v));
    }
    terms[o] = sum;
  }
}

vec3 shade(in vec4 hidden[W], in vec4 terms[TERMS / 4 + 1]) {
  vec4 x[W], y[W];
  for (int i = 0; i < W; i++) x[i] = vec4(0);
  for (int k = 0; k < COLOUR_LAYERS; k++) {
    int rows = COLOUR[7 * k], inputs = COLOUR[7 * k + 1], inputsOfHidden = COLOUR[7 * k + 3];
    int bias = COLOUR[7 * k + 5], first = COLOUR[7 * k + 6];
    for (int o = 0; o < W; o++) {
      y[o] = o >= rows / 4 ? vec4(0) : first < 0 ? param(bias / 4 + o) : terms[first / 4 + o];
    }
    if (inputs > 0) addProduct(rows, inputs, COLOUR[7 * k + 2], x, y);
    if (inputsOfHidden > 0) addProduct(rows, inputsOfHidden, COLOUR[7 * k + 4], hidden, y);
    for (int o = 0; o < W; o++) x[o] = k + 1 < COLOUR_LAYERS ? max(y[o], 0.0) : y[o];
  }
  vec3 raw = x[0].xyz;
  return (1.0 + 2.0 * PADDING) / (1.0 + exp(clamp(-raw, -87.0, 88.0))) - PADDING;
}

// Rays.

struct Ray { vec3 origin; vec3 direction; float radius; };

vec3 directionOf(vec2 pixel) {
  vec2 offset = (pixel + 0.5 - principal) / focal;
  return rotation * vec3(offset.x, -offset.y, -1.0);
}

Ray toNdc(vec3 direction) {
  float tNear = -(1.0 + position.z) / direction.z;
  vec3 plane = position + tNear * direction;
  vec2 centre = plane.xy / plane.z, slope = direction.xy / direction.z;
  vec2 scale = -2.0 * NDC.x / NDC.yz;
  float inverse = 2.0 / plane.z;
  return Ray(vec3(scale * centre, 1.0 + inverse), vec3(scale * (slope - centre), -inverse), 0.0);
}

Ray rayOf(vec2 pixel) {
  Ray ray = Ray(position, directionOf(pixel), RADIUS_PER_PIXEL / focal);
  if (IS_NDC) {
    ray = toNdc(ray.direction);
    float right = length(toNdc(directionOf(pixel + vec2(1, 0))).origin - ray.origin);
    float below = length(toNdc(directionOf(pixel + vec2(0, 1))).origin - ray.origin);
    ray.radius = RADIUS_PER_PIXEL * 0.5 * (right + below);
  }
  return ray;
}

// t of the camera's own ray, at which a point of an NDC ray lies.
float fromNdc(Ray ray, float t, vec3 direction) {
  float z = 2.0 / min(ray.origin.z + t * ray.direction.z - 1.0, -1e-6);
  return (z - position.z) / direction.z;
}

float contractedSpeed(float norm, float scale, float along, float squared) {
  float radial = along * along / (norm * norm), inverse = 1.0 / (norm * norm);
  return norm > 1.0
    ? sqrt(scale * scale * max(squared - radial, 0.0) + inverse * inverse * radial)
    : sqrt(squared);
}

int cellsToSurface(vec3 point) {
  ivec3 cell = clamp(ivec3(point * float(GRID)), 0, GRID - 1);
  return int(texelFetch(skipped, cell.zyx, 0).x);
}

vec4 packed(float value) {
  uint bits = uint(clamp((log2(max(value, 1e-30)) + 32.0) / 64.0, 0.0, 1.0) * 16777215.0);
  return vec4(bits >> 16, (bits >> 8) & 255u, bits & 255u, 0) / 255.0;
}

void main() {
  vec2 pixel = floor(gl_FragCoord.xy);
  Ray ray = rayOf(pixel);
  vec3 direction = directionOf(pixel);
  float start = NEAR, end = FAR;
  if (!CONTRACTION) {
    vec3 low = (CENTRE - 0.5 * SIDE - ray.origin) / ray.direction;
    vec3 high = (CENTRE + 0.5 * SIDE - ray.origin) / ray.direction;
    vec3 enter = min(low, high), leave = max(low, high);
    start = max(start, max(enter.x, max(enter.y, enter.z)));
    end = max(start, min(end, min(leave.x, min(leave.y, leave.z))));
  }
  vec4 terms[TERMS / 4 + 1];
  directionTerms(normalize(direction), terms);
  float squared = dot(ray.direction, ray.direction), unit = sqrt(squared);
  vec3 steepness = abs(ray.direction);
  float largest = max(steepness.x, max(steepness.y, steepness.z));
  float cell = SIDE / float(GRID), longest = LONGEST * (end - start);
  float t = start, transmittance = 1.0, shaded = 0.0, median = -1.0;
  vec3 sum = vec3(0);
  bool ended = false;
  for (int i = 0; i < 20000; i++) {
    if (transmittance <= MIN_TRANSMITTANCE || !(t < end || (IS_OPAQUE && !ended))) break;
    bool isEnd = !(t < end);
    float speed = unit, norm = 1.0, scale = 1.0, along = 0.0, shrink = 1.0;
    if (CONTRACTION) {
      vec3 x = ray.origin + t * ray.direction;
      norm = max(length(x), 1.0);
      scale = (2.0 * norm - 1.0) / (norm * norm);
      speed = contractedSpeed(norm, scale, dot(x, ray.direction), squared);
    }
    float step = min(STEP * SIDE / speed, longest);
    if (isEnd) {
      step = min(step, end - start);
      t = end - step;
    }
    step = min(max(step, 1e-6 * abs(t)), end - t);
    float middle = t + 0.5 * step;
    vec3 x = ray.origin + middle * ray.direction;
    if (CONTRACTION) {
      norm = max(length(x), 1.0);
      scale = (2.0 * norm - 1.0) / (norm * norm);
      along = dot(x, ray.direction);
      shrink = pow(scale / norm, 2.0 / 3.0);
      x *= scale;
    }
    vec3 point = (x - CENTRE) / SIDE + 0.5;
    int away = cellsToSurface(point);
    if (away == 0 || isEnd) {
      vec4 hidden[W];
      float radius = 0.5 * ray.radius * (IS_CONE ? middle : 1.0);
      float density = query(point, radius * shrink / SIDE, hidden);
      float opacity = isEnd ? 1.0 : 1.0 - safeExp(-density * step * unit);
      float weight = transmittance * opacity, before = transmittance;
      transmittance -= weight;
      if (before > 0.5 && transmittance <= 0.5) median = t + step * (before - 0.5) / weight;
      if (weight > MIN_WEIGHT) {
        shaded += weight;
        sum += weight * shade(hidden, terms);
      }
    } else {
      float empty = cell * float(away - 1);
      if (!CONTRACTION) {
        step = max(step, empty / largest);
      } else if (along >= 0.0 || norm <= 1.0) {
        step = max(step, empty / contractedSpeed(norm, scale, along, squared));
      } else {
        float nearest = max(norm - empty / scale, 1.0);
        step = max(step, empty * nearest * nearest / ((2.0 * nearest - 1.0) * unit));
      }
    }
    t += step;
    if (isEnd) {
      ended = true;
      t = end;
    }
  }
  float acc = shaded == 0.0 ? 0.0 : transmittance <= MIN_TRANSMITTANCE ? 1.0 : 1.0 - transmittance;
  vec3 mean = shaded > 0.0 ? sum / shaded : vec3(0);
  colour = vec4(acc * mean + (1.0 - acc) * BACKGROUND, 1);
  float t0 = median < 0.0 ? FAR : median;
  distanceBytes = packed(IS_NDC ? fromNdc(ray, t0, direction) : t0);
  distanceBytes.w = acc;
}
