package dgm

import (
	"math"
	"sync/atomic"
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/persist"
	"github.com/gearsfs/gearsfs/wire"
)

// spaceAge is how old a reading of the free space may be. Meanwhile at most what
// fits through the log in that time is accepted; the reserve is larger.
const spaceAge = 50 * time.Millisecond

// space watches the disk's free space: a full disk would stop the log and with
// it the takes that could make room, so what needs room is refused before. It
// is read when it is asked for, so an idle node does nothing.
type space struct {
	data    *persist.Data
	reserve uint64
	clock   func() time.Time
	readAt  atomic.Int64  // nanoseconds since the Unix epoch
	free    atomic.Uint64 // above the reserve
	total   atomic.Uint64
}

func (s *space) init(data *persist.Data, reserve uint64, clock func() time.Time) {
	s.data, s.reserve, s.clock = data, reserve, clock
	s.read()
}

// refresh takes a reading where the last one is old, or of another time: the
// clock may jump.
func (s *space) refresh() {
	now, last := s.clock().UnixNano(), s.readAt.Load()
	if age := now - last; age >= 0 && age < int64(spaceAge) {
		return
	}
	if s.readAt.CompareAndSwap(last, now) {
		s.read()
	}
}

// read takes a reading. A file system that can't say how full it is counts as
// empty.
func (s *space) read() {
	free, total, err := s.data.Free()
	if err != nil {
		free, total = math.MaxUint64, 0
	}
	s.free.Store(free - min(free, s.reserve))
	s.total.Store(total)
}

func (s *space) full() bool {
	s.refresh()
	return s.free.Load() == 0
}

func (s *space) figures() (free, total uint64) {
	s.refresh()
	if total = s.total.Load(); total == 0 {
		return 0, 0
	}
	return s.free.Load(), total
}

// admit refuses what needs room while there is none.
func (s *space) admit(cmd *wire.Command) error {
	if !s.full() {
		return nil
	}
	switch op := cmd.Op.(type) {
	case *wire.Command_Put, *wire.Command_Write, *wire.Command_Save, *wire.Command_Make, *wire.Command_Link,
		*wire.Command_SetXattr, *wire.Command_Allocate, *wire.Command_SetRemote,
		*wire.Command_Update, *wire.Command_Move, *wire.Command_CopyFile, *wire.Command_CopyRange:
		return gearsfs.ErrNoSpace
	case *wire.Command_Transact:
		for _, step := range op.Transact.Steps {
			if step.GetPut() != nil || step.GetUpdate() != nil {
				return gearsfs.ErrNoSpace
			}
		}
	}
	return nil
}
