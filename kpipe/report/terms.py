"""The words of a report, each explained in a sentence or two."""

TERMS = (
    ("Baseline", "the stage that all ratios and drops are counted from."),
    (
        "Accuracy and drop",
        "the fraction of right answers on the test split, and how many percentage points it lies below the baseline's. "
        "It is that of the exported file where the run measured it there, else that of the Keras model.",
    ),
    (
        "Channels, filters",
        "a filter makes one output channel of a layer. Cutting filters makes the tensors themselves smaller, and so "
        "both the file and the time that it takes.",
    ),
    (
        "Nonzeros, sparsity",
        "sparsity is the fraction of a layer's kernel weights that are exactly zero. A stored zero takes as "
        "much room as any number, and the runtimes multiply by it as by any other: scattered zeros shrink only the "
        "compressed file (KB gzip, KB zstd). So do clusters: weights of a few values are stored at full width.",
    ),
    (
        "int8",
        "weights and activations as whole numbers of 8 bits in place of floats of 32: about a quarter of the size, and "
        "integer arithmetic, which is faster where the processor has instructions for it.",
    ),
    (
        "w4a8, int8_dynamic, int4, float16",
        "w4a8 has weights of 4 bits beside activations of 8. Of the others the weights alone have 8 bits, 4, or are "
        "floats of half the size; what flows between the layers stays in float. The file shrinks about as much as the "
        "weights do. Fewer bits of weights make a file faster only where the runtime has kernels for them.",
    ),
    (
        "int16x8",
        "weights of 8 bits beside activations of 16, rounded by TensorFlow's converter: nearer to the float model than "
        "int8, about as small, and slow where the runtime has only reference kernels.",
    ),
    ("Params", "the numbers that the Keras model stores, statistics of normalisation included."),
    ("MACs", "multiply-accumulate operations for one sample: what the arithmetic costs, whatever the device."),
    (
        "KB",
        "1000 bytes of the exported file, as it lies in the device's storage; KB gzip and KB zstd are the same file as "
        "gzip at level 9 and Zstandard at level 19 leave it, as it is downloaded.",
    ),
    (
        "ms, ms p90",
        "how long one sample takes in the file's own runtime on the machine of this run: the median, and the time that "
        "nine runs in ten stay under. Differences of a few percent are noise. Of a file that takes several samples at "
        "once it is the time of a batch over its samples.",
    ),
    (
        "Answers of a file",
        "how far the answers of the file are from those of the model that it was exported from, on the same "
        "samples. A step is one step of the whole numbers that a file answers in where it computes in them; "
        "argmax agreement is how often both choose the same class. Signal to noise is that of a file that a "
        "converter rounded, against the float model: 20 decibels are an error of a tenth of what an entry of the "
        "answers scatters by between samples. A file beyond the tolerance is not delivered.",
    ),
)
