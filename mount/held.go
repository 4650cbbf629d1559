package mount

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
)

// held are changes of open files that were answered and that the volume has not
// answered yet. The writes and attributes of a file are held and sent together:
//
//	 WRITE, SETATTR        close, fsync, any other request      answered
//	───────────────▶ held ─────────────────────────────▶ flight ────────▶ gone
//	                         heldBytesMax, a full run,
//	                         heldFor
//
// That is so where the next process finds in the journal what this one has not sent
// (heldkept.go), so that its end loses nothing; and where each change waits for several
// nodes, though nothing takes the mount over.
//
// Invariants:
//
//  1. A file's flights that are on their way at once write different bytes, and
//     none of them sets attributes; else the younger one waits for the older
//     (flight.after). So the volume gets to what the programs did.
//  2. Any request on the file but WRITE, SETATTR and FORGET is handled when all
//     that was held before it is answered (settle). A FLUSH so waits for the
//     majority.
//  3. Each handle's next FLUSH or FSYNC is told of a flight that failed, once. The
//     writes behind it are not held, and so are told of what is wrong at once.
//  4. Only what the volume would not refuse is held, as far as that can be known:
//     of a file that was made here, or took a write since it was opened last, and
//     that has room for much more (roomMin).
type held struct {
	on      bool          // else nothing is held
	kept    *keeper       // keeps what is held for the next process; may be nil
	several func() bool   // each change waits for several nodes; may be nil
	most    time.Duration // what is held is held for; 0 is as in longest
	wake    chan struct{} // something is, that nobody may ask for

	busy atomic.Int32 // len(pending)

	mu      sync.Mutex
	files   map[gearsfs.Ino]*heldFile // that are open to be written through the kernel's cache
	pending map[*heldFile]struct{}    // of which something is held or on its way
	bytes   int                       // of them
	last    uint64                    // id of a flight
}

// heldFile is what of one file is held: bytes, and then attributes.
type heldFile struct {
	ino     gearsfs.Ino
	writers int  // handles
	trusted bool // invariant 4
	since   time.Time
	id      uint64 // of the flight that it will be
	runs    runs
	set     *dgm.SetAttr
	flights []*flight // oldest first

	room  uint64 // of the file, when it was asked for last
	asked time.Time
}

const (
	heldFor      = 100 * time.Millisecond
	heldAlone    = 20 * time.Millisecond // on one node, where a power cut takes what was written last, too
	heldBytesMax = 16 << 20              // of all files
	flightsMax   = 8                     // of one file

	roomMin = 64 << 20 // with less the volume or a quota counts as about to be full
	roomFor = heldFor  // is known

	// largeWrite is from where a write is sent at once where that takes no longer than
	// to copy it twice.
	largeWrite = 128 << 10
)

func (h *held) init(o *Options) {
	h.wake, h.most, h.several = make(chan struct{}, 1), o.HeldFor, o.Several
	if o.Succession != nil {
		h.kept = o.Succession.keeper
	}
	h.on = (h.kept != nil || h.several != nil) && !slices.Contains(o.Kernel, "sync")
	h.files, h.pending = map[gearsfs.Ino]*heldFile{}, map[*heldFile]struct{}{}
}

// many says whether each change waits for several nodes.
func (h *held) many() bool { return h.several != nil && h.several() }

// longest is what anything is held for.
func (h *held) longest() time.Duration {
	switch {
	case h.most > 0:
		return h.most
	case h.many():
		return heldFor
	}
	return heldAlone
}

// holds says whether anything is to be held now.
func (h *held) holds() bool {
	if h.kept != nil {
		return h.on && !h.kept.isBroken()
	}
	return h.on && h.many()
}

// open counts a handle that writes through the kernel's cache; made says that the
// file was made just now. close is its end, when nothing is held any more.
func (h *held) open(ino gearsfs.Ino, made bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	e := h.files[ino]
	if e == nil {
		e = &heldFile{ino: ino}
		h.files[ino] = e
	}
	e.writers++
	e.trusted = made // others may have sealed it since the last write
}

func (h *held) close(ino gearsfs.Ino) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if e := h.files[ino]; e != nil {
		e.writers--
		h.leaveLocked(e)
	}
}

// leaveLocked ends what is known of a file that nobody writes to and of which nothing
// is held.
func (h *held) leaveLocked(e *heldFile) {
	if len(e.flights) > 0 || e.holdsAny() {
		return
	}
	if _, ok := h.pending[e]; ok {
		delete(h.pending, e)
		h.busy.Store(int32(len(h.pending)))
	}
	if e.writers == 0 {
		delete(h.files, e.ino)
	}
}

// trust says whether what is written to a file need not be refused.
func (h *held) trust(ino gearsfs.Ino, trusted bool) {
	if !h.on {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if e := h.files[ino]; e != nil {
		e.trusted = trusted
	}
}

// holdsLocked returns the file where changes of it may be held.
func (h *held) holdsLocked(ino gearsfs.Ino) *heldFile {
	if e := h.files[ino]; e != nil && e.trusted {
		return e
	}
	return nil
}

func (e *heldFile) holdsAny() bool { return len(e.runs) > 0 || e.set != nil }

// sets says whether attributes are held or on their way.
func (e *heldFile) sets() bool {
	return e.set != nil || slices.ContainsFunc(e.flights, func(f *flight) bool { return f.set != nil })
}

// reach is the end of the bytes that are held or on their way.
func (e *heldFile) reach() gearsfs.Pos {
	end := e.runs.end()
	for _, f := range e.flights {
		end = max(end, f.runs.end())
	}
	return end
}

// holdWrite holds a write, which it copies; it reports false for one that is to go at
// once. It waits where much of the file is on its way.
func (s *server) holdWrite(f *file, in *fuse.WriteIn, data []byte) bool {
	h := &s.held
	if !f.mayHold(h) || s.mayBeMade() || in.WriteFlags&fuse.WRITE_CACHE != 0 || in.Flags&unix.O_DSYNC != 0 ||
		len(data) == 0 || len(data) > runBytesMax || !h.holds() || len(data) >= largeWrite && !h.many() ||
		s.mayHaveCaps(f.ino) || s.mustKill(f, in) || !s.hasRoom(f.ino) {
		return false
	}
	pos := f.base + gearsfs.Pos(in.Offset)
	h.mu.Lock()
	defer h.mu.Unlock()
	e := h.holdsLocked(f.ino)
	for e != nil && len(e.flights) >= flightsMax {
		oldest := e.flights[0]
		h.mu.Unlock()
		err := await(s.ctx, oldest)
		h.mu.Lock()
		if err != nil {
			return false // and then the write fails of it
		}
		e = h.holdsLocked(f.ino)
	}
	if e == nil || h.bytes+len(data) > heldBytesMax {
		return false
	}
	if e.set != nil {
		s.launchLocked(e)
	}
	h.beginLocked(e)
	grown, ok := e.runs.add(pos, data)
	if !ok {
		s.launchLocked(e)
		h.beginLocked(e)
		grown, _ = e.runs.add(pos, data)
	}
	h.bytes += grown
	s.keepWrite(e, pos, data)
	if e.runs.full() {
		s.launchLocked(e)
	}
	return true
}

// mayHold says whether what is written by a handle may be held. One that a process
// before has opened counts from its first write on.
func (f *file) mayHold(h *held) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.taken {
		f.taken = false
		if f.writes = h.on && !f.direct; f.writes {
			h.open(f.ino, false)
		}
	}
	return f.writes
}

// mayBeMade says whether a process before may have sent what the request changes.
func (s *server) mayBeMade() bool { return s.call != nil && len(s.call.once.Before) > 0 }

// hasRoom says whether the volume, and the quotas that a file counts for, have room for
// much more than what is held, as far as that is known.
func (s *server) hasRoom(ino gearsfs.Ino) bool {
	h := &s.held
	if h.many() {
		return true // each question would cost as much as a write
	}
	h.mu.Lock()
	e := h.holdsLocked(ino)
	if e == nil || !e.asked.IsZero() && time.Since(e.asked) < roomFor {
		room := e != nil && e.room >= roomMin
		h.mu.Unlock()
		return room
	}
	h.mu.Unlock()
	u, err := s.m.StatFS(s.ctx, ino)
	if err != nil {
		return false
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if e = h.holdsLocked(ino); e == nil {
		return false
	}
	e.room, e.asked = u.BytesAvail, time.Now()
	return e.room >= roomMin
}

// mustKill says whether a write must take privileges off the file's mode.
func (s *server) mustKill(f *file, in *fuse.WriteIn) bool {
	if in.WriteFlags&fuse.WRITE_KILL_SUIDGID == 0 {
		return false
	}
	s.held.mu.Lock()
	e := s.held.files[f.ino]
	sets := e != nil && e.sets()
	s.held.mu.Unlock()
	if sets {
		return true
	}
	attr, err := s.m.GetAttr(s.ctx, f.ino)
	return err != nil || attr.Mode&(unix.S_ISUID|unix.S_ISGID) != 0
}

// holdAttr holds attributes that a program sets and returns what the file's
// will be, or false where they are to be set at once. (The kernel asks for the
// privileges to go with every change of an owner: they do.)
func (s *server) holdAttr(ino gearsfs.Ino, set *dgm.SetAttr) (gearsfs.Attr, bool) {
	h := &s.held
	if set.Size != nil || !h.holds() || s.mayBeMade() || (set.UID != nil || set.GID != nil) && s.mayHaveCaps(ino) {
		return gearsfs.Attr{}, false
	}
	h.mu.Lock()
	e := h.holdsLocked(ino)
	if e == nil || e.set == nil && e.sets() {
		h.mu.Unlock()
		return gearsfs.Attr{}, false
	}
	end := e.reach() // before the attributes are asked for: what is not on its way any more is seen by them
	h.mu.Unlock()
	attr, err := s.m.GetAttr(s.ctx, ino)
	if err != nil || !isFile(&attr) {
		return gearsfs.Attr{}, false
	}
	h.mu.Lock()
	if e = h.holdsLocked(ino); e == nil || e.set == nil && e.sets() {
		h.mu.Unlock()
		return gearsfs.Attr{}, false
	}
	h.beginLocked(e)
	if e.set == nil {
		e.set = new(dgm.SetAttr)
	}
	merge(e.set, set)
	s.keepAttr(e, set)
	all := *e.set
	h.mu.Unlock()
	if end > attr.Head {
		attr.Size = max(attr.Size, uint64(end-attr.Head))
	}
	predict(&attr, &all)
	return attr, true
}

// merge adds attributes that are set behind others.
func merge(set, next *dgm.SetAttr) {
	if next.UID != nil || next.GID != nil {
		if set.Mode != nil {
			mode := unprivileged(*set.Mode)
			set.Mode = &mode
		}
	}
	for _, f := range []struct{ to, from **uint32 }{{&set.Mode, &next.Mode}, {&set.UID, &next.UID}, {&set.GID, &next.GID}} {
		if *f.from != nil {
			*f.to = *f.from
		}
	}
	for _, f := range []struct{ to, from **time.Time }{{&set.Atime, &next.Atime}, {&set.Mtime, &next.Mtime}} {
		if *f.from != nil {
			*f.to = *f.from
		}
	}
}

// predict makes attributes what they will be. The kernel shows them to nobody
// without asking again.
func predict(attr *gearsfs.Attr, set *dgm.SetAttr) {
	now := time.Now()
	if set.UID != nil || set.GID != nil {
		attr.Mode = unprivileged(attr.Mode)
	}
	if set.UID != nil {
		attr.UID = *set.UID
	}
	if set.GID != nil {
		attr.GID = *set.GID
	}
	if set.Mode != nil {
		attr.Mode = attr.Mode&unix.S_IFMT | *set.Mode&0o7777
	}
	for _, f := range []struct {
		to   *time.Time
		from *time.Time
	}{{&attr.Atime, set.Atime}, {&attr.Mtime, set.Mtime}} {
		switch {
		case f.from == nil:
		case f.from.IsZero():
			*f.to = now
		default:
			*f.to = *f.from
		}
	}
	attr.Ctime = now
}

// beginLocked notes that something of a file is about to be held.
func (h *held) beginLocked(e *heldFile) {
	if e.holdsAny() {
		return
	}
	e.since = time.Now()
	h.last++
	e.id = h.last
	h.pending[e] = struct{}{}
	h.busy.Store(int32(len(h.pending)))
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

// heldFailed tells all handles of a file that bytes which it was answered for are
// not in it, and the kernel that its pages are not the file's.
func (s *shared) heldFailed(ino gearsfs.Ino, err error) {
	s.log.Warn("what was written to a file could not be sent: its programs are told by fsync and close", "ino", ino, "err", err)
	s.handles.each(func(h handle) {
		if f, ok := h.(*file); ok && f.ino == ino {
			f.fail(err)
		}
	})
	s.believe.pages.push(gearsfs.Change{Ino: ino, Data: true})
}

// fail notes what the next FLUSH or FSYNC of the handle is to say.
func (f *file) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.failed == nil {
		f.failed = err
	}
}

// takeFailed returns what a FLUSH or FSYNC is to say.
func (f *file) takeFailed() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	err := f.failed
	f.failed = nil
	return err
}

// settle returns when all that is held of a file is answered, or ctx ends.
func (s *server) settle(ctx context.Context, ino gearsfs.Ino) error {
	h := &s.held
	if h.busy.Load() == 0 {
		return nil
	}
	h.mu.Lock()
	e := h.files[ino]
	if e == nil {
		h.mu.Unlock()
		return nil
	}
	if f := s.departLocked(e); f != nil && len(e.flights) == 1 && s.asksHere() && !h.many() {
		h.mu.Unlock()
		s.fly(f) // to wake another would take as long as the change itself
		return nil
	} else if f != nil {
		s.flyLocked(f)
	}
	flights := slices.Clone(e.flights)
	h.mu.Unlock()
	return await(ctx, flights...)
}

// settleAll is settle of all files.
func (s *server) settleAll(ctx context.Context) error {
	if s.held.busy.Load() == 0 {
		return nil
	}
	return await(ctx, s.launchOlder(0)...)
}

// launchOlder sends what was held for so long, and returns all that is on its way.
func (s *shared) launchOlder(age time.Duration) (flights []*flight) {
	h := &s.held
	h.mu.Lock()
	defer h.mu.Unlock()
	for e := range h.pending { // in no order: files do not wait for each other
		if e.holdsAny() && time.Since(e.since) >= age {
			s.launchLocked(e)
		}
		flights = append(flights, e.flights...)
	}
	return flights
}

// await returns when flights are over, or ctx is.
func await(ctx context.Context, flights ...*flight) error {
	for _, f := range flights {
		select {
		case <-f.done:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// of says whether something of a file is held or on its way.
func (h *held) of(ino gearsfs.Ino) bool {
	if h.busy.Load() == 0 {
		return false
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	e := h.files[ino]
	return e != nil && (e.holdsAny() || len(e.flights) > 0)
}

// settleNamed settles the file that a name may lead to.
func (s *server) settleNamed(dir gearsfs.Ino, in string) error {
	if s.held.busy.Load() == 0 {
		return nil
	}
	if ino, ok := s.files.leadsTo(name{dir, in}); ok {
		return s.settle(s.ctx, ino)
	}
	return s.settleAll(s.ctx)
}

// settleFor keeps invariant 2 of held for a request. Where it is interrupted
// the handler finds its context ended.
func (s *server) settleFor(in *fuse.InHeader) error {
	switch { // what is missing here is seen to elsewhere
	case s.held.busy.Load() == 0 || in.Opcode == opWrite || in.Opcode == opSetAttr || in.Opcode == opGetXattr:
		return nil
	case in.Opcode == opReadDirPlus || isControl(in.NodeId):
		return s.settleAll(s.ctx)
	}
	return s.settle(s.ctx, gearsfs.Ino(in.NodeId))
}

// sendHeld sends what nobody asks for until ctx ends, and returns when nothing is
// on its way any more.
func (s *shared) sendHeld(ctx context.Context) {
	defer s.flights.Wait()
	for {
		select {
		case <-s.held.wake:
		case <-ctx.Done():
			return
		}
		half := s.held.longest() / 2 // to look for what was held for half the time, this often
		timer := time.NewTimer(half)
		for s.held.busy.Load() > 0 {
			select {
			case <-timer.C:
				s.launchOlder(half)
				timer.Reset(half)
			case <-ctx.Done():
				timer.Stop()
				return
			}
		}
		timer.Stop()
	}
}
