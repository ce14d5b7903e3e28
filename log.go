package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

// logHandler writes records in the two forms that callers of runc parse
// (docs/contract.md, "Errors"): JSON objects with the keys level, msg and time, or
// lines of key=value. Both are forms of logrus, which runc uses. slog's own
// handlers differ in the level's case and in what is quoted.
type logHandler struct {
	mu     *sync.Mutex
	w      io.Writer
	json   bool
	level  slog.Level
	fields []slog.Attr
}

var _ slog.Handler = (*logHandler)(nil)

// newLogHandler writes records of level and above to w.
func newLogHandler(w io.Writer, asJSON bool, level slog.Level) *logHandler {
	return &logHandler{mu: new(sync.Mutex), w: w, json: asJSON, level: level}
}

func (h *logHandler) Enabled(_ context.Context, l slog.Level) bool { return l >= h.level }

func (h *logHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	c := *h
	c.fields = append(c.fields[:len(c.fields):len(c.fields)], attrs...)
	return &c
}

// WithGroup is not used: records are flat.
func (h *logHandler) WithGroup(string) slog.Handler { return h }

func (h *logHandler) Handle(_ context.Context, r slog.Record) error {
	fields := h.fields[:len(h.fields):len(h.fields)]
	r.Attrs(func(a slog.Attr) bool { fields = append(fields, a); return true })
	level := strings.ToLower(r.Level.String())
	if level == "warn" {
		level = "warning"
	}
	line := textLine(r.Time, level, r.Message, fields)
	if h.json {
		line = jsonLine(r.Time, level, r.Message, fields)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	_, err := io.WriteString(h.w, line) // one write, so that lines of several processes do not mix
	return err
}

func textLine(at time.Time, level, msg string, fields []slog.Attr) string {
	var b strings.Builder
	fmt.Fprintf(&b, "time=%q level=%s msg=%s", at.Format(time.RFC3339), level, strconv.Quote(msg))
	for _, f := range fields {
		fmt.Fprintf(&b, " %s=%q", f.Key, f.Value.String())
	}
	b.WriteByte('\n')
	return b.String()
}

func jsonLine(at time.Time, level, msg string, fields []slog.Attr) string {
	m := map[string]string{}
	for _, f := range fields {
		m[f.Key] = f.Value.String()
	}
	m["level"], m["msg"], m["time"] = level, msg, at.Format(time.RFC3339)
	raw, err := json.Marshal(m)
	if err != nil {
		panic(err) // a map of strings always marshals
	}
	return string(raw) + "\n"
}

// logOutput is where the log goes.
type logOutput struct {
	stderr io.Writer
	toFile bool
	logger *slog.Logger
}

func (l *logOutput) open(path, format string, debug bool) error {
	l.logger = slog.New(newLogHandler(l.stderr, false, slog.LevelWarn)) // for errors of the flags themselves
	if format != "text" && format != "json" {
		return fmt.Errorf("invalid log-format %q: text or json", format)
	}
	level := slog.LevelWarn
	if debug {
		level = slog.LevelDebug
	}
	w := l.stderr
	if path != "" {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
		if err != nil {
			return fmt.Errorf("log: %w", err)
		}
		w, l.toFile = f, true
	}
	l.logger = slog.New(newLogHandler(w, format == "json", level))
	return nil
}

// warn reports what did not end the program.
func (l *logOutput) warn(err error) {
	if l.logger != nil {
		l.logger.Warn(err.Error())
	}
}

// fail reports the error that ended the program: in the log and, where that is
// a file, in plain words on standard error too.
func (l *logOutput) fail(err error) {
	if l.logger == nil {
		fmt.Fprintln(l.stderr, err)
		return
	}
	l.logger.Error(err.Error())
	if l.toFile {
		fmt.Fprintln(l.stderr, err)
	}
}
