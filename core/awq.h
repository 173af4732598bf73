/* awq.h: the C API of awq.cpp, which runs AWQ int4 language models from their Hugging Face directories.
 *
 * An engine is a loaded model: immutable, used by any number of sessions on any number of threads. A session is one
 * conversation or completion with its own KV cache; one thread at a time may use it.
 *
 * Every function that can fail returns an awq_status; awq_last_error() then has one sentence for people (per thread).
 * The library never prints, exits, aborts, throws or touches signals. Text is UTF-8. Strings that the library returns by
 * pointer are freed with awq_free(). Callbacks run on the calling thread.
 *
 * Minimal use (examples/embed.cpp):
 *     awq_options options = awq_default_options();
 *     options.model = "path/to/model";
 *     awq_engine* engine; awq_session* session;
 *     if (awq_engine_load(&options, &engine) || awq_session_create(engine, &session)) puts(awq_last_error());
 *     awq_chat(session, "[{\"role\": \"user\", \"content\": \"Hello\"}]", NULL, on_text, NULL, NULL);
 */
#ifndef AWQ_H
#define AWQ_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif

#define AWQ_VERSION "0.1.0"

typedef enum awq_status {
    AWQ_OK = 0,
    AWQ_INVALID_ARGUMENT = 1, /* an option, a token id out of range, an empty prompt, a request that is not sound */
    AWQ_NOT_FOUND = 2,        /* a file, directory, tensor or module that should be there */
    AWQ_IO = 3,               /* the operating system said no */
    AWQ_BAD_FILE = 4,         /* a file is damaged or lies about itself */
    AWQ_UNSUPPORTED = 5,      /* sound, but not something this library runs */
    AWQ_OUT_OF_MEMORY = 6,
    AWQ_CONTEXT_FULL = 7,     /* no room in the context, or no free pages in the KV cache */
    AWQ_CANCELLED = 8,        /* a callback returned false, or awq_cancel() was called */
    AWQ_NON_FINITE = 9,       /* a NaN or an infinity came up; the message names the first layer and op if checked */
    AWQ_INTERNAL = 10,        /* a bug of the library */
} awq_status;

/* The message of this thread's last failed call; never null. */
const char* awq_last_error(void);
const char* awq_version(void);
void awq_free(char* text);

/* ---- engine */

typedef struct awq_engine awq_engine;
typedef struct awq_session awq_session;

/* Progress of long work: fraction 0..1 and what is being done. Return false to stop it. */
typedef bool (*awq_progress)(double fraction, const char* what, void* user);

typedef struct awq_options {
    const char* model;       /* directory, or org/name[@revision] in the local Hugging Face cache */
    const char* backend;     /* "auto" (default), "cuda", "cpu", "reference" */
    int device;              /* CUDA device */
    int threads;             /* CPU threads; 0: one for each physical core */
    int64_t context;         /* positions of one session; 0: the model's, at most 8192 */
    int64_t cache_tokens;    /* positions of all sessions together; 0: as memory allows */
    int64_t memory;          /* bytes of weights, KV cache and scratch at most; 0: what the GPU has free, on a CPU no limit */
    int head_bits;           /* 16 (default): the output head as it is; 8: packed to 8 bits at load */
    int skip_rule;           /* how modules_to_not_convert is read: 4 (transformers 4.57, default) or 5 (5.23) */
    bool no_fuse;            /* every module runs by itself */
    bool check_finite;       /* look for NaN and infinity after every op (slow) */
    /* Overrides of the checkpoint's quantization_config, as JSON with AwqConfig's keys: version, backend, do_fuse,
       fuse_max_seq_len, modules_to_fuse, modules_to_not_convert, exllama_config, group_size. Null: none. */
    const char* awq_config;
    awq_progress progress;   /* may be null */
    void* user;              /* for progress */
} awq_options;

awq_options awq_default_options(void);
awq_status awq_engine_load(const awq_options* options, awq_engine** engine);
void awq_engine_free(awq_engine* engine); /* sessions must be gone; null is fine */
/* {"model_type", "backend", "device", "context", "vocab_size", "weight_bytes", "has_chat_template", "has_vision", ...} */
awq_status awq_engine_info(const awq_engine* engine, char** json);

/* ---- text */

/* ids: the caller's array of `capacity`; *count receives the true number even where it is larger. */
awq_status awq_tokenize(const awq_engine* engine, const char* text, size_t length, bool add_special_tokens, int32_t* ids,
                        size_t capacity, size_t* count);
awq_status awq_detokenize(const awq_engine* engine, const int32_t* ids, size_t count, bool skip_special_tokens, char** text);
/* Renders the model's chat template. request: {"messages": [...], "add_generation_prompt": true, "tools": ..., "extra": {...}} */
awq_status awq_render(const awq_engine* engine, const char* request_json, char** text);

/* A PNG or JPEG file (its bytes) as the model's preprocessor_config.json wants it: 3 x image_size x image_size floats
   (awq_engine_info), channels R, G, B; capacity counts floats. For awq_generation.pixels. */
awq_status awq_image_pixels(const awq_engine* engine, const void* file, size_t size, float* pixels, size_t capacity);

/* ---- generation */

typedef struct awq_sampling {
    bool sample;             /* false: greedy, the rest is ignored but for the penalties */
    float temperature;
    int top_k;               /* 0: off */
    float top_p;             /* 1: off */
    float min_p;             /* 0: off */
    float repeat_penalty;    /* 1: off; over prompt and answer */
    float presence_penalty;  /* 0: off; over the answer */
    float frequency_penalty; /* 0: off; over the answer */
    uint64_t seed;
} awq_sampling;

typedef struct awq_generation {
    awq_sampling sampling;
    int64_t max_tokens;      /* new tokens at most; < 0: as many as the context holds */
    bool ignore_eos;
    const char* const* stop; /* strings that end the answer (they are not part of it) */
    size_t stop_count;
    const float* pixels;     /* images: [image_count][3][size][size], normalised; null: none (models with vision). The prompt
                                has one image token for each; it becomes as many as the image has rows */
    size_t image_count;
} awq_generation;

/* What the model's generation_config.json says; greedy where it says nothing. */
awq_generation awq_default_generation(const awq_engine* engine);

typedef enum awq_finish { AWQ_FINISH_EOS = 0, AWQ_FINISH_STOP = 1, AWQ_FINISH_LENGTH = 2, AWQ_FINISH_CONTEXT = 3, AWQ_FINISH_CANCELLED = 4 } awq_finish;

typedef struct awq_stats {
    int64_t prompt_tokens;   /* of the whole prompt */
    int64_t cached_tokens;   /* of these, already in the KV cache */
    int64_t new_tokens;
    double prompt_seconds, generate_seconds;
    awq_finish finish;
} awq_stats;

/* Called with each piece of text as it becomes final (never half a character; may be empty) and the token it came with
   (-1: the flush at the end). Return false to stop: the call then ends well with AWQ_FINISH_CANCELLED. */
typedef bool (*awq_on_text)(const char* text, size_t length, int32_t token, void* user);

awq_status awq_session_create(awq_engine* engine, awq_session** session);
void awq_session_free(awq_session* session);
int64_t awq_session_length(const awq_session* session);             /* tokens in the KV cache */
void awq_session_truncate(awq_session* session, int64_t length);    /* forget what comes after */

/* The answer to a conversation (JSON array of messages, or a request as in awq_render). What the session's cache already
   holds of it is not computed again. generation, on_text and stats may be null. The images of all messages, in order, are
   generation->pixels; in a message's content {"type": "image"} parts stand for them. */
awq_status awq_chat(awq_session* session, const char* messages_json, const awq_generation* generation, awq_on_text on_text,
                    void* user, awq_stats* stats);
/* Plain continuation of a text, or of token ids. */
awq_status awq_complete(awq_session* session, const char* text, size_t length, const awq_generation* generation,
                        awq_on_text on_text, void* user, awq_stats* stats);
awq_status awq_generate(awq_session* session, const int32_t* ids, size_t count, const awq_generation* generation,
                        awq_on_text on_text, void* user, awq_stats* stats);
/* Feeds ids after what the cache holds; logits of the last one: `vocab_size` floats, may be null. */
awq_status awq_feed(awq_session* session, const int32_t* ids, size_t count, float* logits);
/* From any thread or signal handler: the session's running call, or its next one, ends at the next op or token: awq_feed
   with AWQ_CANCELLED, the others well with AWQ_FINISH_CANCELLED. */
void awq_cancel(awq_session* session);
void awq_uncancel(awq_session* session);    /* takes it back, where it came too late for the call it was meant for */

/* ---- tools: what the commands of the program are made of */

/* The plan of a model, weights or not: for people (json false) or as JSON; `explain` a module's path, or null. On a refused
   configuration the status is an error and, with json, *text is {"error": ...}. */
awq_status awq_inspect(const awq_options* options, bool json, const char* explain, char** text);

/* One stage of the model, a JSON object in, a JSON object out; see docs/eval.md. stage: tokenize, detokenize, render, logits,
   generate, perplexity. The first three need no weights. A request that fails gives {"error": ...} and AWQ_OK. */
typedef struct awq_evaluator awq_evaluator;
awq_status awq_evaluator_open(const awq_options* options, const char* stage, awq_evaluator** evaluator);
awq_status awq_evaluator_run(awq_evaluator* evaluator, const char* request, size_t length, char** answer);
void awq_evaluator_free(awq_evaluator* evaluator);

/* Measures speed. request: {"shape": NAME or null, "prompt": [512], "generate": [128], "batch": [1], "depth": [0],
   "repeat": 5, "kernels": false}; without a shape options.model is measured. *json: {"machine", "rows": [...]}. */
awq_status awq_bench(const awq_options* options, const char* request, char** json);

/* Fingerprints of every tensor, scan for non-finite values and zero scales; `write` stores the fingerprints beside them. */
awq_status awq_verify(const char* model, bool write, awq_progress progress, void* user, char** json);

/* A GGUF file as an AWQ directory. `directory` must not exist unless `overwrite`. */
awq_status awq_import_gguf(const char* gguf, const char* directory, bool overwrite, awq_progress progress, void* user);

#ifdef __cplusplus
}
#endif
#endif
