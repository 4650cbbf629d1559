package mount

import (
	"fmt"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
	"github.com/gearsfs/gearsfs/mount/journal"
)

// legacy is what a process leaves to the next that serves its mount.
type legacy struct {
	birth   birth
	session gearsfs.SessionID
	seqs    uint64 // used, up to here
	heirs   uint64 // processes that have taken over

	requests   map[uint64]*request
	answered   []uint64 // those of them that were answered, in order
	replyBytes int      // of these

	handles map[uint64]handle
	lastFh  uint64
	nodes   map[uint64]place
	lastID  uint64
	locks   *locks // may have been had, see locks
	retries map[uint32]retry

	flights    map[uint64]*keptFlight // by their ids
	lastFlight uint64
}

// birth is what does not change while a mount lives.
type birth struct {
	init     []byte // the kernel's INIT, less what was not agreed on
	writeMax int
	dir      string
	device   string
	resends  bool // the kernel can send again what has no reply
	names    string
	volume   string // its name
}

func (b *birth) entry() []byte {
	e := encodeBytes(start(entryBirth), b.init)
	e = encode(e, uint64(b.writeMax), flag(b.resends, 1))
	for _, s := range []string{b.dir, b.device, b.names, b.volume} {
		e = encodeBytes(e, []byte(s))
	}
	return e
}

func newLegacy() *legacy {
	held := newLocks()
	return &legacy{
		requests: map[uint64]*request{}, handles: map[uint64]handle{}, nodes: map[uint64]place{},
		retries: map[uint32]retry{}, locks: &held, flights: map[uint64]*keptFlight{},
	}
}

// readLegacy reads a journal.
func readLegacy(j *journal.Log) (*legacy, error) {
	l := newLegacy()
	err := j.Entries(func(e []byte) error {
		d := decoder{b: e}
		l.apply(&d)
		return d.err
	})
	if err != nil {
		return nil, fmt.Errorf("the journal of the mount: %w", err)
	}
	return l, nil
}

func (l *legacy) apply(d *decoder) {
	switch k := d.kind(); k {
	case entryBirth:
		l.birth = birth{
			init: d.bytes(), writeMax: int(d.uint()), resends: d.uint() != 0,
			dir: d.string(), device: d.string(), names: d.string(), volume: d.string(),
		}
	case entrySession:
		l.session = gearsfs.SessionID{Minted: int64(d.uint()), Salt: d.uint()}
		l.seqs = d.uint()
	case entryHeir:
		l.heirs = d.uint()
	case entryNumbered:
		r := l.request(d.uint())
		r.numbers = append(r.numbers, dgm.Numbered{
			Session: gearsfs.SessionID{Minted: int64(d.uint()), Salt: d.uint()}, Kind: uint32(d.uint()), Seq: d.uint(),
		})
	case entryAnswered:
		l.answer(d)
	case entryForgone:
		if unique := d.uint(); l.requests[unique] != nil && !l.requests[unique].answered {
			delete(l.requests, unique)
		}
	default:
		d.err = errEntry
	}
}

func (l *legacy) request(unique uint64) *request {
	r := l.requests[unique]
	if r == nil {
		r = new(request)
		l.requests[unique] = r
	}
	return r
}

// answer applies what a request that was answered has changed, and forgets the
// oldest replies.
func (l *legacy) answer(d *decoder) {
	unique, status, reply := d.uint(), fuse.Status(d.uint()), d.bytes()
	switch {
	case isFlight(unique):
		delete(l.requests, unique)
	case unique != noRequest:
		*l.request(unique) = request{answered: true, status: status, reply: reply}
		l.answered = append(l.answered, unique)
		l.replyBytes += len(reply)
	}
	for len(l.answered) > repliesMax || l.replyBytes > replyBytesMax && len(l.answered) > repliesMin {
		if old := l.requests[l.answered[0]]; old != nil {
			l.replyBytes -= len(old.reply)
			delete(l.requests, l.answered[0])
		}
		l.answered = l.answered[1:]
	}
	for len(d.b) > 0 && d.err == nil {
		l.effect(d)
	}
}

// write writes a journal that says the same, in fewer entries.
func (l *legacy) write(add func(parts ...[]byte)) error {
	add(l.birth.entry())
	add(sessionEntry(l.session, l.seqs))
	add(encode(start(entryHeir), l.heirs))
	for unique, r := range l.requests {
		for _, n := range r.numbers {
			add(numberedEntry(unique, n))
		}
	}
	// What is open goes with an answer that nobody waits for.
	of := func(effect []byte) { add(answeredEntry(noRequest, 0, nil), effect) }
	for id, p := range l.nodes {
		of(nodeEffect(id, p))
	}
	for fh, h := range l.handles {
		of(handleEffect(fh, h))
		if state := stateEffect(fh, h); state != nil {
			of(state)
		}
	}
	for thread, r := range l.retries {
		of(retryEffect(thread, r))
	}
	for ino, owners := range l.locks.table {
		for by, h := range owners {
			for fh := range h.asked {
				of(lockEffect(ino, by, fh))
			}
		}
	}
	l.writeFlights(add)
	for _, unique := range l.answered {
		if r := l.requests[unique]; r != nil {
			add(answeredEntry(unique, r.status, r.reply))
		}
	}
	return nil
}

// Kinds of effects.
const (
	effectHandle  = 'h'
	effectClosed  = 'c'
	effectShown   = 'd'
	effectPutter  = 'p'
	effectLast    = 'q'
	effectTaker   = 't'
	effectReplay  = 'r'
	effectNode    = 'n'
	effectNodeEnd = 'e'
	effectLock    = 'l'
	effectUnlock  = 'u'
	effectRetry   = 'y'
	effectRetried = 'z'

	effectHeld     = 'w' // see heldkept.go
	effectRun      = 'W'
	effectHeldAttr = 'a'
	effectLanded   = 'o'
	effectFailed   = 'f'
	effectUntold   = 'F'
	effectTold     = 'g'
)

// Kinds of handles.
const (
	handleFile   = 'f'
	handleDir    = 'd'
	handleText   = 'x'
	handlePutter = 'p'
	handleTaker  = 't'
	handleReplay = 'r'
)

func encodePlace(b []byte, p place) []byte {
	b = encode(b, uint64(p.kind), uint64(p.ino), uint64(p.dir))
	return encodeBytes(encodeBytes(b, []byte(p.name)), []byte(p.key))
}

func (d *decoder) place() place {
	return place{kind: kind(d.uint()), ino: gearsfs.Ino(d.uint()), dir: gearsfs.Ino(d.uint()), name: d.string(), key: gearsfs.Key(d.string())}
}

func nodeEffect(id uint64, p place) []byte { return encodePlace(encode(start(effectNode), id), p) }

// lockEffect says that an owner has asked for a lock by a handle, unlockEffect that
// it has none any more.
func lockEffect(ino gearsfs.Ino, by owner, fh uint64) []byte {
	return encode(start(effectLock), uint64(ino), by.id, flag(by.flock, 1), fh)
}

func unlockEffect(ino gearsfs.Ino, by owner) []byte {
	return encode(start(effectUnlock), uint64(ino), by.id, flag(by.flock, 1))
}

// retryEffect says that a thread was told ESTALE, and what it has looked up
// since; retriedEffect that it was not, or has opened something.
func retryEffect(thread uint32, r retry) []byte {
	b := encode(start(effectRetry), uint64(thread), uint64(r.told), uint64(r.kept), flag(r.weak, 1), uint64(r.seen), uint64(r.at.dir), uint64(r.link))
	return encodeBytes(encodeBytes(b, []byte(r.at.name)), []byte(r.target))
}

func retriedEffect(thread uint32) []byte { return encode(start(effectRetried), uint64(thread)) }

func (l *legacy) retry(d *decoder) {
	thread := uint32(d.uint())
	r := retry{told: gearsfs.Ino(d.uint()), kept: gearsfs.Ino(d.uint()), weak: d.uint() != 0, seen: gearsfs.Ino(d.uint())}
	r.at.dir, r.link = gearsfs.Ino(d.uint()), gearsfs.Ino(d.uint())
	r.at.name, r.target = d.string(), d.string()
	if d.err == nil {
		l.retries[thread] = r
	}
}

// handleEffect says that something is open.
func handleEffect(fh uint64, h handle) []byte {
	b := encode(start(effectHandle), fh)
	switch h := h.(type) {
	case *file:
		return encode(append(b, handleFile), uint64(h.ino), uint64(h.base), flag(h.direct, 1))
	case *directory:
		return encode(append(b, handleDir), uint64(h.ino), uint64(h.parent))
	case *text:
		return encodePlace(append(b, handleText), h.at)
	case *putter:
		b = encode(append(b, handlePutter), uint64(h.opener), uint64(h.owner.Uid), uint64(h.owner.Gid), uint64(h.appendMax))
		return encodePlace(b, h.at)
	case *taker:
		return encodePlace(encode(append(b, handleTaker), flag(h.takes, 1)), h.at)
	case *replay:
		return encodePlace(append(b, handleReplay), h.at)
	}
	panic(fmt.Sprintf("a %T can't be handed on", h))
}

func (d *decoder) handle() handle {
	switch d.kind() {
	case handleFile:
		return &file{ino: gearsfs.Ino(d.uint()), base: gearsfs.Pos(d.uint()), direct: d.uint() != 0}
	case handleDir:
		return &directory{ino: gearsfs.Ino(d.uint()), parent: gearsfs.Ino(d.uint())}
	case handleText:
		return &text{at: d.place()}
	case handlePutter:
		p := &putter{opener: uint32(d.uint()), owner: fuse.Owner{Uid: uint32(d.uint()), Gid: uint32(d.uint())}, appendMax: int(d.uint()), turn: newTurn()}
		p.at = d.place()
		return p
	case handleTaker:
		takes := d.uint() != 0
		return newTaker(d.place(), takes)
	case handleReplay:
		return newReplay(d.place())
	}
	d.err = errEntry
	return nil
}

// stateEffect is what a handle that nobody else uses now has come to.
func stateEffect(fh uint64, h handle) []byte {
	switch h := h.(type) {
	case *directory:
		return shownEffect(fh, 0, h.shown)
	case *putter:
		return putterEffect(fh, h, h.buf)
	case *taker:
		return takerEffect(fh, h, true)
	case *replay:
		return replayEffect(fh, h)
	}
	return nil
}

// shownEffect says which names a directory has shown, from the first-th on.
func shownEffect(fh uint64, first int, names []string) []byte {
	b := encode(start(effectShown), fh, uint64(first), uint64(len(names)))
	for _, name := range names {
		b = encodeBytes(b, []byte(name))
	}
	return b
}

// putterEffect says what a putter is, and what was added to its record.
func putterEffect(fh uint64, p *putter, added []byte) []byte {
	b := encode(start(effectPutter), fh, p.round,
		flag(p.begun, 1)|flag(p.refused, 2)|flag(p.dead, 4)|flag(p.dying, 8))
	return encodeBytes(b, added)
}

// lastEffect says whether whoever closed a putter last died by a signal.
func lastEffect(fh uint64, dying bool) []byte { return encode(start(effectLast), fh, flag(dying, 1)) }

// takerEffect says what a taker is; its record is said once.
func takerEffect(fh uint64, t *taker, record bool) []byte {
	r := t.record
	b := encode(start(effectTaker), fh, uint64(t.sent), flag(t.ended, 1)|flag(t.dying, 2)|
		flag(r != nil && record, 4)|flag(r != nil && r.Receipt != nil, 8))
	if r == nil || !record {
		return b
	}
	if r.Receipt != nil {
		b = encode(b, uint64(r.Receipt.Ino), uint64(r.Receipt.Place.Pos), uint64(r.Receipt.Place.Seq), r.Receipt.Fence)
		b = encodeBytes(b, []byte(r.Receipt.Key))
	}
	return encodeBytes(b, r.Data)
}

// replayEffect says how far a replay is. What it has fetched is fetched again.
func replayEffect(fh uint64, r *replay) []byte {
	return encode(start(effectReplay), fh, flag(r.begun, 1), uint64(r.until), uint64(r.given), uint64(r.part))
}

func (l *legacy) effect(d *decoder) {
	switch k := d.kind(); k {
	case effectHandle:
		fh := d.uint()
		if h := d.handle(); h != nil {
			l.handles[fh] = h
			l.lastFh = max(l.lastFh, fh)
		}
	case effectClosed:
		delete(l.handles, d.uint())
	case effectNode:
		id := d.uint()
		l.nodes[id] = d.place()
		l.lastID = max(l.lastID, id)
	case effectNodeEnd:
		delete(l.nodes, d.uint())
	case effectLock:
		ino, by := gearsfs.Ino(d.uint()), owner{d.uint(), d.uint() != 0}
		l.locks.note(ino, by, d.uint())
	case effectUnlock:
		ino, by := gearsfs.Ino(d.uint()), owner{d.uint(), d.uint() != 0}
		l.locks.forget(ino, by)
	case effectRetry:
		l.retry(d)
	case effectRetried:
		delete(l.retries, uint32(d.uint()))
	case effectHeld, effectRun:
		l.heldWrite(d, k == effectRun)
	case effectHeldAttr:
		l.heldAttr(d)
	case effectLanded:
		l.land(d.uint())
	case effectFailed:
		l.failed(d)
	case effectUntold, effectTold:
		l.untold(d, k == effectTold)
	case effectShown:
		l.shown(d)
	case effectPutter:
		l.putter(d)
	case effectLast:
		fh, dying := d.uint(), d.uint() != 0
		if p, ok := l.handles[fh].(*putter); ok {
			p.dying = dying
		}
	case effectTaker:
		l.taker(d)
	case effectReplay:
		fh, begun := d.uint(), d.uint() != 0
		until, given, part := gearsfs.Seq(d.uint()), gearsfs.Seq(d.uint()), int(d.uint())
		if r, ok := l.handles[fh].(*replay); ok {
			r.begun, r.until, r.given, r.after, r.part, r.skip = begun, until, given, given, part, part
		}
	default:
		d.err = errEntry
	}
}

func (l *legacy) shown(d *decoder) {
	fh, first, n := d.uint(), d.uint(), d.uint()
	dir, _ := l.handles[fh].(*directory)
	if dir != nil {
		dir.shown = dir.shown[:min(uint64(len(dir.shown)), first)]
	}
	for range n {
		name := d.string()
		if d.err != nil {
			return
		}
		if dir != nil {
			dir.shown = append(dir.shown, name)
		}
	}
}

// putter applies what a write or a flush did.
func (l *legacy) putter(d *decoder) {
	fh, round, flags, added := d.uint(), d.uint(), d.uint(), d.bytes()
	p, ok := l.handles[fh].(*putter)
	if !ok {
		return
	}
	if round != p.round {
		p.round, p.buf = round, nil
	}
	p.begun, p.refused, p.dead, p.dying = flags&1 != 0, flags&2 != 0, flags&4 != 0, flags&8 != 0
	if p.buf = append(p.buf, added...); p.refused {
		p.buf = nil
	}
}

func (l *legacy) taker(d *decoder) {
	fh, sent, flags := d.uint(), int(d.uint()), d.uint()
	var record *gearsfs.Record
	if flags&4 != 0 {
		record = new(gearsfs.Record)
		if flags&8 != 0 {
			record.Receipt = &gearsfs.Receipt{
				Ino:   gearsfs.Ino(d.uint()),
				Place: gearsfs.Place{Pos: gearsfs.Pos(d.uint()), Seq: gearsfs.Seq(d.uint())}, Fence: d.uint(),
			}
			record.Receipt.Key = gearsfs.Key(d.string())
		}
		record.Data = d.bytes()
	}
	t, ok := l.handles[fh].(*taker)
	if !ok {
		return
	}
	t.sent, t.ended, t.dying = max(t.sent, sent), t.ended || flags&1 != 0, flags&2 != 0
	if record != nil {
		t.record = record
	}
	if t.ended {
		t.record = nil
	}
}

// lasting is how the next process goes on with the session.
func (l *legacy) lasting(k *keeper) *dgm.Lasting {
	s := &dgm.Lasting{
		Session: l.session, NextSeq: l.seqs, Attempt: l.heirs << 32,
		Opens: map[gearsfs.Ino]uint64{}, Note: k.noteSession,
	}
	for _, h := range l.handles {
		if f, ok := h.(*file); ok {
			s.Opens[f.ino]++
		}
	}
	for _, r := range l.retries {
		if r.kept != 0 {
			s.Opens[r.kept]++
		}
	}
	for _, r := range l.requests {
		s.Numbers = append(s.Numbers, r.numbers...)
	}
	return s
}

// restore makes a new server know what the process before has left.
func (s *server) restore(l *legacy) {
	for id, p := range l.nodes {
		s.control.restore(id, p)
	}
	s.control.last = l.lastID &^ controlBit
	for fh, h := range l.handles {
		switch h := h.(type) {
		case *file:
			s.inodes.restore(h.ino, h.base, h.direct)
			h.taken = true
		case *directory:
			h.list = s.listerOf(h.ino)
		case *text:
			h.render = s.renderer(h.at)
		}
		s.handles.table[fh] = h
	}
	s.handles.last = l.lastFh
	s.locks.table = l.locks.table
	s.retries.table = l.retries
	s.relaunch(l)
	s.keeper.left, s.keeper.names = l.requests, l.birth.names
	time.AfterFunc(resentWithin, func() {
		if s.life.Err() == nil {
			s.keeper.forgo(s.life, s.m)
		}
	})
}
