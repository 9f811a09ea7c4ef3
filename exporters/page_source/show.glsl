#version 300 es
// Shows a finished or half-finished image on the canvas: colours, distances or normals.
precision highp float;
precision highp int;

uniform sampler2D coarse, coarseDistance, fine, fineDistance;
// Size of the canvas; rows of the fine image that are finished, of 1.
uniform vec2 canvas;
uniform float finished;
// 0 colours, 1 distances, 2 normals.
uniform int mode;
// log2 of the shown distances.
uniform vec2 range;
uniform mat3 rotation;
uniform float focal;

out vec4 shown;

float unpacked(vec4 bytes) {
  uvec3 b = uvec3(bytes.xyz * 255.0 + 0.5);
  return float((b.x << 16) | (b.y << 8) | b.z) / 16777215.0 * 64.0 - 32.0;
}

vec3 turbo(float x) {
  x = clamp(x, 0.0, 1.0);
  vec4 low = vec4(1.0, x, x * x, x * x * x);
  vec2 high = low.zw * low.z;
  return vec3(dot(low, vec4(0.13572138, 4.61539260, -42.66032258, 132.13108234))
                + dot(high, vec2(-152.94239396, 59.28637943)),
              dot(low, vec4(0.09140261, 2.19418839, 4.84296658, -14.18503333))
                + dot(high, vec2(4.27729857, 2.82956604)),
              dot(low, vec4(0.10667330, 12.64194608, -60.58204836, 110.36276771))
                + dot(high, vec2(-89.90310912, 27.34824973)));
}

vec3 pointAt(sampler2D image, ivec2 pixel, ivec2 size) {
  pixel = clamp(pixel, ivec2(0), size - 1);
  float t = exp2(unpacked(texelFetch(image, pixel, 0)));
  vec2 offset = (vec2(pixel) + 0.5 - 0.5 * vec2(size)) / (focal * float(size.x));
  return t * (rotation * vec3(offset.x, -offset.y, -1.0));
}

vec3 colourOf(sampler2D image, sampler2D distances, vec2 at) {
  if (mode == 0) return texture(image, at).rgb;
  ivec2 size = textureSize(distances, 0), pixel = ivec2(at * vec2(size));
  vec4 bytes = texelFetch(distances, clamp(pixel, ivec2(0), size - 1), 0);
  if (bytes.w < 0.5) return vec3(mode == 1 ? 0.0 : 0.5);
  if (mode == 1) return turbo(1.0 - (unpacked(bytes) - range.x) / max(range.y - range.x, 1e-3));
  vec3 across = pointAt(distances, pixel + ivec2(1, 0), size)
              - pointAt(distances, pixel - ivec2(1, 0), size);
  vec3 down = pointAt(distances, pixel + ivec2(0, 1), size)
            - pointAt(distances, pixel - ivec2(0, 1), size);
  return 0.5 + 0.5 * normalize(cross(down, across));
}

void main() {
  vec2 at = vec2(gl_FragCoord.x, canvas.y - gl_FragCoord.y) / canvas;
  shown = vec4(at.y < finished ? colourOf(fine, fineDistance, at)
                               : colourOf(coarse, coarseDistance, at), 1);
}
