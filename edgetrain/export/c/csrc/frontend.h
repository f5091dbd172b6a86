/* Mel-frequency cepstral coefficients, frame by frame: edgetrain/ops/mfcc.py in C, in 32-bit floating point.
 *
 *     frame * periodic Hann -> |DFT| -> mel bank -> ln -> DCT-II
 *
 * Sizes and tables are in frontend_tables.h. Features are within 1e-4 of PyTorch's on recordings (4e-5 was measured on
 * 900 of them), and within 0.05 on a pure tone or a constant, of which most triangles hear rounding alone. Needs logf
 * and sqrtf; works in one static buffer, so that one frame is computed at a time.
 */
#ifndef EDGETRAIN_FRONTEND_H
#define EDGETRAIN_FRONTEND_H

#include <stdint.h>

#include "frontend_tables.h"

#ifdef __cplusplus
extern "C" {
#endif

/* samples: EDGETRAIN_WINDOW in [-1, 1], or their integers, 32768 times as large; features: EDGETRAIN_COEFFICIENTS.
 * Frame number k of a recording begins at sample k * EDGETRAIN_STRIDE. */
void edgetrain_frame(const float *samples, float *features);
void edgetrain_frame_int16(const int16_t *samples, float *features);

#ifdef __cplusplus
}
#endif

#endif
