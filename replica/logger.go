package replica

import (
	"context"
	"fmt"
	"log/slog"

	"go.etcd.io/raft/v3"
)

// quiet passes raft's messages on to slog at debug level: what it calls a
// warning is its ordinary life.
type quiet struct{ log *slog.Logger }

var _ raft.Logger = quiet{}

func (q quiet) say(v []any) {
	if q.log.Enabled(context.Background(), slog.LevelDebug) {
		q.log.Debug(fmt.Sprint(v...))
	}
}

func (q quiet) sayf(format string, v []any) {
	if q.log.Enabled(context.Background(), slog.LevelDebug) {
		q.log.Debug(fmt.Sprintf(format, v...))
	}
}

func (q quiet) Debug(v ...any)                   { q.say(v) }
func (q quiet) Debugf(format string, v ...any)   { q.sayf(format, v) }
func (q quiet) Info(v ...any)                    { q.say(v) }
func (q quiet) Infof(format string, v ...any)    { q.sayf(format, v) }
func (q quiet) Warning(v ...any)                 { q.say(v) }
func (q quiet) Warningf(format string, v ...any) { q.sayf(format, v) }
func (q quiet) Error(v ...any)                   { q.say(v) }
func (q quiet) Errorf(format string, v ...any)   { q.sayf(format, v) }

// Raft panics when an invariant of its own is broken, or when its storage
// returned an error: Group.guard tells the two apart.
func (q quiet) Fatal(v ...any)                 { panic(raftPanic(fmt.Sprint(v...))) }
func (q quiet) Fatalf(format string, v ...any) { panic(raftPanic(fmt.Sprintf(format, v...))) }
func (q quiet) Panic(v ...any)                 { panic(raftPanic(fmt.Sprint(v...))) }
func (q quiet) Panicf(format string, v ...any) { panic(raftPanic(fmt.Sprintf(format, v...))) }
