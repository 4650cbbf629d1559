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
// answered yet. Where each change waits for several nodes, a mount that nothing
// takes over holds the writes and attributes of a file and sends them as one
// command, or, of a large file, as several at once:
//
//	 WRITE, SETATTR        close, fsync, any other request      answered
//	───────────────▶ held ─────────────────────────────▶ flight ────────▶ gone
//	                         heldBytesMax, the next piece,
//	                         heldFor
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
//     of a file that was made here, or took a write since it was opened last.
type held struct {
	several func() bool   // each change waits for several nodes; nil where nothing is held at all
	most    time.Duration // what is held is held for
	wake    chan struct{} // something is, that nobody may ask for

	busy atomic.Int32 // len(pending)

	mu      sync.Mutex
	files   map[gearsfs.Ino]*heldFile // that are open to be written through the kernel's cache
	pending map[*heldFile]struct{}    // of which something is held or on its way
	bytes   int                       // of them
}

// heldFile is what of one file is held: a run of bytes, and then attributes.
type heldFile struct {
	ino     gearsfs.Ino
	writers int  // handles
	trusted bool // invariant 4
	since   time.Time
	pos     gearsfs.Pos
	run     []byte
	set     *dgm.SetAttr
	flights []*flight // oldest first
}

// flight is a command on its way.
type flight struct {
	file  *heldFile
	pos   gearsfs.Pos
	data  []byte
	set   *dgm.SetAttr
	after []*flight
	done  chan struct{}
}

const (
	heldFor      = 100 * time.Millisecond
	runBytesMax  = writeMax // of what goes as one command
	heldBytesMax = 32 << 20 // of all files
	flightsMax   = 8        // of one file
)

func (h *held) init(o *Options) {
	h.wake, h.most = make(chan struct{}, 1), heldFor
	if o.Succession == nil && !slices.Contains(o.Kernel, "sync") {
		h.several = o.Several
	}
	if o.HeldFor > 0 {
		h.most = o.HeldFor
	}
	h.files, h.pending = map[gearsfs.Ino]*heldFile{}, map[*heldFile]struct{}{}
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
		if e.writers--; e.writers == 0 {
			delete(h.files, ino)
		}
	}
}

// trust says whether what is written to a file need not be refused.
func (h *held) trust(ino gearsfs.Ino, trusted bool) {
	if h.several == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if e := h.files[ino]; e != nil {
		e.trusted = trusted
	}
}

// holds returns the file where changes of it may be held.
func (h *held) holdsLocked(ino gearsfs.Ino) *heldFile {
	if e := h.files[ino]; e != nil && e.trusted {
		return e
	}
	return nil
}

func (e *heldFile) end() gearsfs.Pos { return e.pos + gearsfs.Pos(len(e.run)) }

func (e *heldFile) holdsAny() bool { return len(e.run) > 0 || e.set != nil }

// sets says whether attributes are held or on their way.
func (e *heldFile) sets() bool {
	return e.set != nil || slices.ContainsFunc(e.flights, func(f *flight) bool { return f.set != nil })
}

// reach is the end of the bytes that are held or on their way.
func (e *heldFile) reach() gearsfs.Pos {
	end := gearsfs.Pos(0)
	if len(e.run) > 0 {
		end = e.end()
	}
	for _, f := range e.flights {
		end = max(end, f.pos+gearsfs.Pos(len(f.data)))
	}
	return end
}

// overlaps says whether two flights must go one after the other.
func (f *flight) overlaps(g *flight) bool {
	return f.set != nil || g.set != nil ||
		f.pos < g.pos+gearsfs.Pos(len(g.data)) && g.pos < f.pos+gearsfs.Pos(len(f.data))
}

// holdWrite holds a write, which it copies; it reports false for one that is to go at
// once. It waits where much of the file is on its way.
func (s *server) holdWrite(f *file, in *fuse.WriteIn, data []byte) bool {
	h := &s.held
	if !f.writes || h.several == nil || in.WriteFlags&fuse.WRITE_CACHE != 0 || in.Flags&unix.O_DSYNC != 0 ||
		len(data) == 0 || len(data) > runBytesMax || !h.several() || s.mayHaveCaps(f.ino) || s.mustKill(f, in) {
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
	off := pos - e.pos
	apart := len(e.run) > 0 && (pos < e.pos || pos > e.end() || max(int(off)+len(data), len(e.run)) > runBytesMax)
	if e.set != nil || apart {
		s.launchLocked(e)
	}
	h.beginLocked(e)
	if len(e.run) == 0 {
		e.pos, off = pos, 0
	}
	e.run = withRoom(e.run, int(off)+len(data))
	n := copy(e.run[off:], data)
	e.run = append(e.run, data[n:]...)
	h.bytes += len(data) - n
	if len(e.run) == runBytesMax {
		s.launchLocked(e)
	}
	return true
}

// runMemory is what large runs are in. It is used again and again, because fresh memory,
// which is zeroed and faulted in page by page, costs more than the copying into it.
var runMemory = sync.Pool{New: func() any { b := make([]byte, 0, runBytesMax); return &b }}

// withRoom returns a run in memory for n bytes at least where these are many, else
// as it is. So of what runs keep half is used.
func withRoom(run []byte, n int) []byte {
	if n < runBytesMax/2 || cap(run) >= n {
		return run
	}
	return append((*runMemory.Get().(*[]byte))[:0], run...)
}

// forget gives the memory of a run back that nobody uses any more.
func forget(run []byte) {
	if cap(run) == runBytesMax {
		run = run[:0]
		runMemory.Put(&run)
	}
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
	if h.several == nil || set.Size != nil || !h.several() || (set.UID != nil || set.GID != nil) && s.mayHaveCaps(ino) {
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
	h.pending[e] = struct{}{}
	h.busy.Store(int32(len(h.pending)))
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

// launchLocked sends what is held of a file on its way.
func (s *shared) launchLocked(e *heldFile) {
	if !e.holdsAny() {
		return
	}
	f := &flight{file: e, pos: e.pos, data: e.run, set: e.set, done: make(chan struct{})}
	e.run, e.set = nil, nil
	for _, older := range e.flights {
		if f.overlaps(older) {
			f.after = append(f.after, older)
		}
	}
	e.flights = append(e.flights, f)
	s.flights.Go(func() { s.fly(f) }) // ends with the Manager's answer, or s.life
}

// fly sends a command and takes the answer.
func (s *shared) fly(f *flight) {
	for _, older := range f.after {
		<-older.done
	}
	f.after = nil
	e := f.file
	attr, err := s.send(f)
	switch {
	case err != nil:
		s.heldFailed(e.ino, err)
	case len(f.data) > 0:
		s.inodes.wrote(&attr)
	}
	h := &s.held
	h.mu.Lock()
	defer h.mu.Unlock()
	e.flights = slices.DeleteFunc(e.flights, func(other *flight) bool { return other == f })
	h.bytes -= len(f.data)
	if err != nil {
		e.trusted = false // and it may be that somebody still has the bytes
	} else {
		forget(f.data)
	}
	if len(e.flights) == 0 && !e.holdsAny() {
		delete(h.pending, e)
		h.busy.Store(int32(len(h.pending)))
	}
	close(f.done)
}

func (s *shared) send(f *flight) (gearsfs.Attr, error) {
	switch {
	case f.set == nil:
		return s.m.Write(s.life, f.file.ino, f.pos, f.data)
	case len(f.data) == 0:
		return s.m.SetAttr(s.life, f.file.ino, *f.set)
	}
	return s.m.Save(s.life, f.file.ino, f.pos, f.data, *f.set)
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
	s.launchLocked(e)
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
	half := s.held.most / 2 // to look for what was held for half the time, this often
	for {
		select {
		case <-s.held.wake:
		case <-ctx.Done():
			return
		}
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
