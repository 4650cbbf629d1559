package dgm

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/persist"
	"github.com/gearsfs/gearsfs/wire"
)

// spacePoll is how often the free space is read. Between two readings at most
// what fits through the log in that time is accepted; the reserve is larger.
const spacePoll = 50 * time.Millisecond

// space watches the disk's free space: a full disk would stop the log and with
// it the takes that could make room, so what needs room is refused before.
type space struct {
	data    *persist.Data
	reserve uint64
	free    atomic.Uint64 // above the reserve
	total   atomic.Uint64
}

func (s *space) init(data *persist.Data, reserve uint64) {
	s.data, s.reserve = data, reserve
	s.read()
}

func (s *space) run(ctx context.Context) {
	ticker := time.NewTicker(spacePoll)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			s.read()
		}
	}
}

// read takes a reading; where none can be had the last one stands.
func (s *space) read() {
	free, total, err := s.data.Free()
	if err != nil {
		return
	}
	s.free.Store(free - min(free, s.reserve))
	s.total.Store(total)
}

func (s *space) full() bool { return s.free.Load() == 0 }

func (s *space) figures() (free, total uint64) { return s.free.Load(), s.total.Load() }

// admit refuses what needs room while there is none.
func (s *space) admit(cmd *wire.Command) error {
	if !s.full() {
		return nil
	}
	switch cmd.Op.(type) {
	case *wire.Command_Put, *wire.Command_Write, *wire.Command_Make, *wire.Command_Link,
		*wire.Command_SetXattr, *wire.Command_Allocate, *wire.Command_SetRemote:
		return gearsfs.ErrNoSpace
	}
	return nil
}
