package payload

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/gearsfs/gearsfs"
)

const (
	scrubFirst = time.Hour // after the volume was opened
	scrubEvery = 7 * 24 * time.Hour
)

// upkeep looks after the block store in the background: once an hour it sweeps,
// once a week it reads all that rows refer to. Both are paced. It also runs the
// checks that somebody asks for, one at a time.
type upkeep struct {
	keeper  *Keeper
	settled time.Duration // see block.SweepOptions.Age

	mu      sync.Mutex
	removed map[gearsfs.MemberID]time.Time // when they were first seen to be
	scrub   gearsfs.FsckReport             // the last one
	running bool                           // a check that was asked for
	sofar   gearsfs.FsckReport             // of that one
}

func (u *upkeep) init(k *Keeper) {
	u.keeper = k
	u.removed = make(map[gearsfs.MemberID]time.Time)
}

// begin looks after the store until the volume begins to close.
func (u *upkeep) begin() {
	cfg := &u.keeper.cfg
	cfg.Node.Spawn(func() {
		u.regularly(sweepFirst, sweepEvery, func(ctx context.Context) {
			if _, why := u.sweepNow(ctx); why != "" {
				cfg.Log.Info(why)
			}
		})
	})
	if cfg.ScrubBytesPerSecond > 0 {
		cfg.Node.Spawn(func() { u.regularly(scrubFirst, scrubEvery, u.scrubNow) })
	}
}

func (u *upkeep) regularly(first, every time.Duration, do func(context.Context)) {
	ctx := u.keeper.cfg.Busy
	for pause := first; ; pause = every {
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
			do(ctx)
		case <-ctx.Done():
			timer.Stop()
			return
		}
	}
}

// scrubNow reads all live extents slowly and mends them from other nodes.
func (u *upkeep) scrubNow(ctx context.Context) {
	cfg := &u.keeper.cfg
	began := time.Now()
	run := u.newRun(true, cfg.ScrubBytesPerSecond, nil)
	if err := run.check(ctx); err != nil {
		if ctx.Err() == nil {
			cfg.Log.Warn("the large payloads can't be checked", "error", err)
		}
		return
	}
	u.mu.Lock()
	u.scrub = run.report
	u.mu.Unlock()
	for _, f := range run.report.Faults {
		args := []any{"what", f.What, "path", f.Path, "inode", uint64(f.Ino), "stream", string(f.Key), "pos", uint64(f.Pos), "bytes", f.Bytes,
			"segment", f.Segment, "at", f.At, "reason", f.Reason}
		if f.Mended {
			cfg.Log.Warn("bytes of a large payload were wrong here, and are mended", args...)
		} else {
			cfg.Log.Error("bytes of a large payload are lost", args...)
		}
	}
	cfg.Log.Info("checked all large payloads", "bytes", run.report.Bytes, "took", time.Since(began).Truncate(time.Second),
		"faults", run.report.Found, "mended", run.report.Mended)
}

// warnings are for the node's status.
func (u *upkeep) warnings() (w []string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if n := u.scrub.Wrong(); n > 0 {
		w = append(w, fmt.Sprintf("%d pieces of large payloads are damaged or missing, and no node that was reached has them: gearsfs fsck names them", n))
	}
	return w
}

// Progress is how far the check is that somebody has asked for (Fsck).
func (k *Keeper) Progress() gearsfs.FsckReport {
	u := &k.upkeep
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.sofar
}
