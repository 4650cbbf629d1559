package mount

import (
	"bytes"
	"encoding/binary"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
)

// What is held is in the journal, each write and each change of attributes under the
// id of the flight that it goes with. What a flight makes, and each of its runs, is
// numbered as a request's changes are, and so made once, however many processes begin
// it: the runs are the same for all of them. With its answer the flight is forgotten.
//
// A WRITE is answered and held in one step. A SETATTR is held, and then answered: one
// that comes again in between sets the same again.

// flightBit marks the id of a flight where the journal names a request: the kernel's
// uniques do not reach it. The runs are counted, from 1 on, in the bits from runShift on.
const (
	flightBit = 1 << 62
	runShift  = 48
)

func flightUnique(id uint64) uint64     { return flightBit | id }
func runUnique(id uint64, i int) uint64 { return flightBit | uint64(i+1)<<runShift | id }

func isFlight(unique uint64) bool { return unique&flightBit != 0 && unique != noRequest }

// keptFlight is what the journal says of a flight that has not landed.
type keptFlight struct {
	ino  gearsfs.Ino
	runs runs
	set  *dgm.SetAttr
}

// recordFlight is dgm.Once.Record of a flight, or of a run.
func (k *keeper) recordFlight(unique uint64) func(dgm.Numbered) {
	return func(n dgm.Numbered) { k.add(numberedEntry(unique, n)) }
}

func (k *keeper) isBroken() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.broken
}

// keepWrite notes a write that is held, which is its answer.
func (s *server) keepWrite(e *heldFile, pos gearsfs.Pos, data []byte) {
	if s.keeper == nil {
		return
	}
	unique, reply := uint64(noRequest), []byte(nil)
	if s.call != nil {
		unique, reply = s.call.unique, binary.LittleEndian.AppendUint32(nil, uint32(len(data)))
	}
	s.keeper.add(answeredEntry(unique, fuse.OK, reply), heldEffect(effectHeld, e.id, e.ino, pos, len(data)), data)
}

// keepAttr notes attributes that are held.
func (s *server) keepAttr(e *heldFile, set *dgm.SetAttr) {
	if s.keeper != nil {
		s.keeper.add(answeredEntry(noRequest, fuse.OK, nil), heldAttrEffect(e.id, e.ino, set))
	}
}

// landed notes that a flight has its answer. One that the end of this process, or of
// the node in it, has cut off is left to the next.
func (s *shared) landed(f *flight, err error) {
	if s.keeper == nil || err != nil && (s.life.Err() != nil || errors.Is(err, gearsfs.ErrClosed)) {
		return
	}
	effects := encode(start(effectLanded), f.id)
	if err != nil {
		effects = append(effects, encode(start(effectFailed), uint64(f.file.ino), uint64(errno(err)))...)
	}
	s.keeper.add(answeredEntry(flightUnique(f.id), fuse.OK, nil), effects)
	f.once.Done()
	for i := range f.sends {
		f.sends[i].Done()
	}
}

// heldEffect says that bytes were written: kind is effectHeld, or effectRun for a run
// that is complete. The bytes are n, and follow.
func heldEffect(kind byte, id uint64, ino gearsfs.Ino, pos gearsfs.Pos, n int) []byte {
	return encode(start(kind), id, uint64(ino), uint64(pos), uint64(n))
}

// Which attributes are held.
const (
	heldMode = 1 << iota
	heldUID
	heldGID
	heldAtime
	heldMtime
)

func heldAttrEffect(id uint64, ino gearsfs.Ino, set *dgm.SetAttr) []byte {
	which := flag(set.Mode != nil, heldMode) | flag(set.UID != nil, heldUID) | flag(set.GID != nil, heldGID) |
		flag(set.Atime != nil, heldAtime) | flag(set.Mtime != nil, heldMtime)
	b := encode(start(effectHeldAttr), id, uint64(ino), which)
	for _, v := range []*uint32{set.Mode, set.UID, set.GID} {
		if v != nil {
			b = encode(b, uint64(*v))
		}
	}
	for _, t := range []*time.Time{set.Atime, set.Mtime} {
		if t == nil {
			continue
		}
		now := flag(t.IsZero(), 1)
		b = encode(b, now)
		if now == 0 {
			b = encode(b, uint64(t.Unix()), uint64(t.Nanosecond()))
		}
	}
	return b
}

func (d *decoder) heldAttr() *dgm.SetAttr {
	set, which := new(dgm.SetAttr), d.uint()
	for _, f := range []struct {
		bit uint64
		to  **uint32
	}{{heldMode, &set.Mode}, {heldUID, &set.UID}, {heldGID, &set.GID}} {
		if which&f.bit != 0 {
			v := uint32(d.uint())
			*f.to = &v
		}
	}
	for _, f := range []struct {
		bit uint64
		to  **time.Time
	}{{heldAtime, &set.Atime}, {heldMtime, &set.Mtime}} {
		if which&f.bit == 0 {
			continue
		}
		var t time.Time
		if now := d.uint() != 0; !now {
			t = time.Unix(int64(d.uint()), int64(d.uint()))
		}
		*f.to = &t
	}
	return set
}

// flight is what the journal says of a flight.
func (l *legacy) flight(id uint64, ino gearsfs.Ino) *keptFlight {
	f := l.flights[id]
	if f == nil {
		f = &keptFlight{ino: ino}
		l.flights[id] = f
		l.lastFlight = max(l.lastFlight, id)
	}
	return f
}

func (l *legacy) heldWrite(d *decoder, complete bool) {
	id, ino, pos, data := d.uint(), gearsfs.Ino(d.uint()), gearsfs.Pos(d.uint()), d.view()
	if d.err != nil {
		return
	}
	f := l.flight(id, ino)
	if complete {
		f.runs = append(f.runs, run{pos, bytes.Clone(data)})
	} else if _, ok := f.runs.add(pos, data); !ok {
		d.err = errEntry
	}
}

func (l *legacy) heldAttr(d *decoder) {
	id, ino, set := d.uint(), gearsfs.Ino(d.uint()), d.heldAttr()
	if d.err != nil {
		return
	}
	f := l.flight(id, ino)
	if f.set == nil {
		f.set = new(dgm.SetAttr)
	}
	merge(f.set, set)
}

func (l *legacy) failed(d *decoder) {
	ino, err := gearsfs.Ino(d.uint()), unix.Errno(d.uint())
	for _, h := range l.handles {
		if f, ok := h.(*file); ok && f.ino == ino {
			f.fail(err)
		}
	}
}

func (l *legacy) untold(d *decoder, told bool) {
	fh := d.uint()
	f, _ := l.handles[fh].(*file)
	switch {
	case told && f != nil:
		f.failed = nil
	case !told:
		if err := unix.Errno(d.uint()); f != nil {
			f.failed = err
		}
	}
}

// writeFlights is a part of write.
func (l *legacy) writeFlights(add func(parts ...[]byte)) {
	for _, id := range slices.Sorted(maps.Keys(l.flights)) {
		f := l.flights[id]
		for _, r := range f.runs {
			add(answeredEntry(noRequest, 0, nil), heldEffect(effectRun, id, f.ino, r.pos, len(r.data)), r.data)
		}
		if f.set != nil {
			add(answeredEntry(noRequest, 0, nil), heldAttrEffect(id, f.ino, f.set))
		}
	}
	for fh, h := range l.handles {
		if f, ok := h.(*file); ok && f.failed != nil {
			add(answeredEntry(noRequest, 0, nil), encode(start(effectUntold), fh, uint64(errno(f.failed))))
		}
	}
}

// relaunch sends on its way what processes before have held.
func (s *server) relaunch(l *legacy) {
	h := &s.held
	h.mu.Lock()
	defer h.mu.Unlock()
	h.last = l.lastFlight
	for _, id := range slices.Sorted(maps.Keys(l.flights)) {
		kept := l.flights[id]
		e := h.files[kept.ino]
		if e == nil {
			e = &heldFile{ino: kept.ino}
			h.files[kept.ino] = e
		}
		f := newFlight(e, id, kept.runs, kept.set)
		f.once.Before = l.takeNumbers(flightUnique(id))
		for i := range f.sends {
			f.sends[i].Before = l.takeNumbers(runUnique(id, i))
		}
		h.bytes += f.runs.bytes()
		h.pending[e] = struct{}{}
		s.boardLocked(f)
		s.flyLocked(f)
	}
	h.busy.Store(int32(len(h.pending)))
}

// takeNumbers returns what a request that no kernel sends again has made.
func (l *legacy) takeNumbers(unique uint64) []dgm.Numbered {
	r := l.requests[unique]
	if r == nil {
		return nil
	}
	delete(l.requests, unique)
	return r.numbers
}

// land forgets a flight.
func (l *legacy) land(id uint64) {
	f := l.flights[id]
	if f == nil {
		return
	}
	for i := range f.runs {
		delete(l.requests, runUnique(id, i))
	}
	delete(l.flights, id)
}
