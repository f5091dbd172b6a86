/* An example that listens: says which words of the model it hears in 16-bit samples, little-endian, of one channel.
 *
 *     stream FILE        or        arecord -q -f S16_LE -r 16000 -t raw | stream
 *
 * Prints a line `seconds label score` for each word: when it was heard, from the beginning, and how sure the network is
 * of it, 0 to 1. Every frame of features is computed once. Probabilities are averaged over the last runs of the
 * network, as Chen et al. 2014 smooth them (unverified); runs that have not been yet count as 0. A model that has no
 * label for other sounds hears a word in all of them.
 *
 * Each option can be given to the compiler, as -DTHRESHOLD_PERCENT=90.
 */
#include <stdio.h>
#include <string.h>

#include "frontend.h"
#include "model.h"

#ifndef RUN_EVERY
#define RUN_EVERY 5 /* frames from one run of the network to the next */
#endif
#ifndef SMOOTHED_RUNS
#define SMOOTHED_RUNS 3 /* runs that are averaged */
#endif
#ifndef THRESHOLD_PERCENT
#define THRESHOLD_PERCENT 80 /* least average probability of a word that is reported, in percent */
#endif
#ifndef REFRACTORY_MS
/* ms after a reported word in which no other is: as long as it may stay in the network's input */
#define REFRACTORY_MS (1000LL * EDGETRAIN_FRAMES * EDGETRAIN_STRIDE / EDGETRAIN_SAMPLE_RATE)
#endif
#ifndef IGNORED_LABELS
#define IGNORED_LABELS "silence", "unknown" /* what is no word to report; at least one string */
#endif

#if MODEL_INPUT_BYTES != EDGETRAIN_FRAMES * EDGETRAIN_COEFFICIENTS
#error "the network does not take the features of this front end"
#endif

/* Samples that are kept: a frame, or more where frames are further apart than they are long. */
#define KEPT (EDGETRAIN_WINDOW > EDGETRAIN_STRIDE ? EDGETRAIN_WINDOW : EDGETRAIN_STRIDE)

static int is_word(const char *label)
{
    static const char *const ignored[] = {IGNORED_LABELS};
    for (size_t i = 0; i < sizeof ignored / sizeof *ignored; i++) {
        if (strcmp(label, ignored[i]) == 0) {
            return 0;
        }
    }
    return 1;
}

/* After each run of the network, `heard` samples from the beginning: the averages, and whether one is a word. */
static void detect(const int8_t *logits, uint64_t heard)
{
    static uint8_t history[SMOOTHED_RUNS][MODEL_CLASSES]; /* probabilities in steps of 1/256 */
    static int32_t sums[MODEL_CLASSES], oldest;
    static uint64_t deaf_until;
    int8_t probabilities[MODEL_CLASSES];
    int32_t best = -1;
    model_softmax(logits, probabilities);
    for (int32_t i = 0; i < MODEL_CLASSES; i++) {
        uint8_t probability = (uint8_t)(probabilities[i] + 128);
        sums[i] += probability - history[oldest][i];
        history[oldest][i] = probability;
        if (is_word(model_labels[i]) && (best < 0 || sums[i] > sums[best])) {
            best = i;
        }
    }
    oldest = (oldest + 1) % SMOOTHED_RUNS;
    if (best >= 0 && heard >= deaf_until && 100 * sums[best] >= THRESHOLD_PERCENT * 256 * SMOOTHED_RUNS) {
        double seconds = (double)heard / EDGETRAIN_SAMPLE_RATE, score = sums[best] / (256.0 * SMOOTHED_RUNS);
        printf("%.2f %s %.2f\n", seconds, model_labels[best], score);
        fflush(stdout);
        deaf_until = heard + (uint64_t)REFRACTORY_MS * EDGETRAIN_SAMPLE_RATE / 1000;
    }
}

/* The next frame of samples goes into a ring of features, and from time to time the ring into the network. */
static void hear_frame(const int16_t *samples, uint64_t heard)
{
    enum { CLIP = EDGETRAIN_FRAMES * EDGETRAIN_COEFFICIENTS };
    static float ring[2 * CLIP]; /* every frame twice, so that the last EDGETRAIN_FRAMES of them are in one piece */
    static int32_t at, frames_to_run = EDGETRAIN_FRAMES;
    edgetrain_frame_int16(samples, ring + at);
    memcpy(ring + at + CLIP, ring + at, EDGETRAIN_COEFFICIENTS * sizeof *ring);
    at += EDGETRAIN_COEFFICIENTS;
    if (--frames_to_run == 0) {
        frames_to_run = RUN_EVERY;
        model_quantize(ring + at, model_input());
        detect(model_run(), heard);
    }
    at %= CLIP;
}

static void hear(int16_t sample)
{
    static int16_t recent[KEPT];
    static int32_t filled;
    static uint64_t heard;
    recent[filled++] = sample;
    heard++;
    if (filled == EDGETRAIN_WINDOW) {
        hear_frame(recent, heard);
    }
    if (filled == KEPT) {
        memmove(recent, recent + EDGETRAIN_STRIDE, (KEPT - EDGETRAIN_STRIDE) * sizeof *recent);
        filled -= EDGETRAIN_STRIDE;
    }
}

/* 0 at the end; an odd byte there is no sample. */
static int read_sample(FILE *in, int16_t *sample)
{
    int low = getc(in), high = getc(in);
    if (high == EOF) {
        return 0;
    }
    *sample = (int16_t)(((low | high << 8) ^ 0x8000) - 0x8000);
    return 1;
}

int main(int argc, char **argv)
{
    FILE *in = argc == 2 ? fopen(argv[1], "rb") : stdin;
    int16_t sample, before = 0;
    if (argc > 2) {
        fprintf(stderr, "usage: stream [FILE], of 16-bit samples at %d Hz\n", EDGETRAIN_SAMPLE_RATE);
        return 2;
    }
    if (in == NULL) {
        fprintf(stderr, "stream: cannot open %s\n", argv[1]);
        return 2;
    }
    if (model_init() != 0) {
        fprintf(stderr, "stream: the network needs more scratch than was planned for it\n");
        return 1;
    }
    for (int32_t place = 0; read_sample(in, &sample); place += place < 2) {
        if (place == 1 && before == 0x4952 && sample == 0x4646) {
            fprintf(stderr, "stream: a wav file; give its samples alone, such as sox FILE -t raw - | stream\n");
            return 2;
        }
        hear(sample);
        before = sample;
    }
    if (ferror(in)) {
        fprintf(stderr, "stream: cannot read %s\n", argc == 2 ? argv[1] : "from standard input");
        return 1;
    }
    return 0;
}
