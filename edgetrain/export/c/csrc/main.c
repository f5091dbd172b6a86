/* main [--int8] [--raw] [FILE]: runs the network on inputs, one after another, from FILE or else standard input.
 *
 * An input is MODEL_INPUT_BYTES numbers: float32 in the order of the trained network's input, or with --int8 already
 * quantised, in the order height, width, channels. Prints `label probability` for each; with --raw writes the logits,
 * MODEL_OUTPUT_BYTES of int8, and nothing else. Works on this machine and on a core under semihosting.
 */
#include <stdio.h>
#include <string.h>

#include "model.h"

static int refuse(const char *what, const char *which)
{
    fprintf(stderr, "%s%s\n", what, which);
    return 1;
}

static void answer(const int8_t *logits)
{
    int8_t probabilities[MODEL_CLASSES];
    int best = 0;
    for (int i = 1; i < MODEL_CLASSES; i++)
        if (logits[i] > logits[best])
            best = i;
    model_softmax(logits, probabilities);
    printf("%s %.3f\n", model_labels[best], (probabilities[best] + 128) / 256.0);
}

int main(int argc, char **argv)
{
    static float x[MODEL_INPUT_BYTES];
    const char *path = NULL;
    int whole = 0, raw = 0;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--int8"))
            whole = 1;
        else if (!strcmp(argv[i], "--raw"))
            raw = 1;
        else if (argv[i][0] == '-' || path != NULL)
            return refuse("usage: main [--int8] [--raw] [FILE], not ", argv[i]);
        else
            path = argv[i];
    }
    int failure = model_init();
    if (failure) {
        fprintf(stderr, "layer %d needs more scratch memory than was planned; export again\n", failure - 1);
        return 1;
    }
    FILE *file = path == NULL ? stdin : fopen(path, "rb");
    if (file == NULL)
        return refuse("cannot read ", path);
    size_t size = whole ? MODEL_INPUT_BYTES : sizeof x, got;
    while ((got = fread(whole ? (void *)model_input() : (void *)x, 1, size, file)) == size) {
        if (!whole)
            model_quantize(x, model_input());
        const int8_t *logits = model_run();
        if (!raw)
            answer(logits);
        else if (fwrite(logits, 1, MODEL_OUTPUT_BYTES, stdout) != MODEL_OUTPUT_BYTES)
            return refuse("cannot write to ", "standard output");
    }
    if (ferror(file))
        return refuse("cannot read ", path == NULL ? "standard input" : path);
    if (got)
        fprintf(stderr, "the last input has %lu bytes, not %lu\n", (unsigned long)got, (unsigned long)size);
    return got != 0 || fflush(stdout) != 0;
}
