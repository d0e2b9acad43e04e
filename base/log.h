/* log.h: lines on standard error, one event a line.
 *
 *   2026-11-23T08:15:02.123Z I attn/3 pair with ffn/1 open
 *
 * Any thread may call; a line is one write(2), so lines of processes that share a file do not mix. The name
 * (`attn/3`) is set once at start. A failure is logged once, by the function that first knows its cause. */
#ifndef AFD_BASE_LOG_H
#define AFD_BASE_LOG_H

enum afd_log_level { AFD_LOG_ERROR, AFD_LOG_WARN, AFD_LOG_INFO, AFD_LOG_DEBUG };

/* `name` is copied (31 bytes at most). Lines above `level` are dropped. */
void afd_log_init(const char *name, enum afd_log_level level);
void afd_log(enum afd_log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));

#define afd_log_error(...) afd_log(AFD_LOG_ERROR, __VA_ARGS__)
#define afd_log_warn(...) afd_log(AFD_LOG_WARN, __VA_ARGS__)
#define afd_log_info(...) afd_log(AFD_LOG_INFO, __VA_ARGS__)
#define afd_log_debug(...) afd_log(AFD_LOG_DEBUG, __VA_ARGS__)

#endif
