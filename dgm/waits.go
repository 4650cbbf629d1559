package dgm

import (
	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/stream"
)

// waits holds what waits in a tenure: takes and peeks for records, puts for
// room, locks for others, and opens for an unlink. It is guarded by tenure.mu.
//
// Invariants:
//
//  1. An op is in lines exactly while its state is opWaiting: in that of each
//     of its keys where its file exists, else in that of the file's name. The
//     keys of a transaction are those of one step that it lacks something for. A
//     lock is in that of its file.
//  2. A line is kept only while an op is in it or records are promised to it.
//  3. Each line is in the order in which its ops first waited, that of puts in the
//     order in which they came; one that comes back, or moves from its file's
//     name to the file, keeps its place.
//  4. No op has a key twice.
//  5. What is in ids and leases waits, and is in each list once.
type waits struct {
	tickets   stream.Tickets
	count     int
	files     map[gearsfs.Ino]map[gearsfs.Key]*spot
	names     map[nameKey]*line
	locks     map[gearsfs.Ino]*line // locks that wait
	unlinking map[gearsfs.Ino]*unlinking
	ids       map[idAt][]*op  // puts that wait, by an id that their stream does not know
	leases    map[place][]*op // transactions that wait, by the streams whose leases they settle
}

// spot is a stream at which something waits.
type spot struct {
	takes, puts, peeks line
	txs                line
	putting            bool // the first of those that waited for room is trying
}

// line is a waiting line, first come first served.
type line struct {
	*stream.Line[*op]
	promised uint64 // records of takes that are proposed
}

func (w *waits) newLine() line { return line{Line: stream.NewLine[*op](&w.tickets)} }

func (l *line) each(f func(*op)) {
	for w := range l.All() {
		f(w.Value)
	}
}

// first is the oldest op that waits, nil where none does.
func (l *line) first() *op {
	if w := l.First(); w != nil {
		return w.Value
	}
	return nil
}

func (l *line) idle() bool { return l.Len() == 0 && l.promised == 0 }

func (w *waits) init() {
	w.files = make(map[gearsfs.Ino]map[gearsfs.Key]*spot)
	w.names = make(map[nameKey]*line)
	w.locks = make(map[gearsfs.Ino]*line)
	w.unlinking = make(map[gearsfs.Ino]*unlinking)
}

func (w *waits) len() int { return w.count }

// spot returns the lines at a stream, nil where nothing waits there.
func (w *waits) spot(ino gearsfs.Ino, key gearsfs.Key) *spot { return w.files[ino][key] }

func (w *waits) makeSpot(ino gearsfs.Ino, key gearsfs.Key) *spot {
	file := w.files[ino]
	if file == nil {
		file = make(map[gearsfs.Key]*spot)
		w.files[ino] = file
	}
	s := file[key]
	if s == nil {
		s = &spot{takes: w.newLine(), puts: w.newLine(), peeks: w.newLine(), txs: w.newLine()}
		file[key] = s
	}
	return s
}

// tidy drops the lines at a stream where nothing waits any more.
func (w *waits) tidy(ino gearsfs.Ino, key gearsfs.Key) {
	file := w.files[ino]
	if s := file[key]; s != nil && !s.putting && s.takes.idle() && s.puts.idle() && s.peeks.idle() && s.txs.idle() {
		delete(file, key)
		if len(file) == 0 {
			delete(w.files, ino)
		}
	}
}

// lineOf is the line at a spot that o belongs to.
func (s *spot) lineOf(o *op) *line {
	switch {
	case o.peek != nil:
		return &s.peeks
	case o.isTake():
		return &s.takes
	case o.isPut():
		return &s.puts
	}
	return &s.txs
}

// join makes o wait, at its old place where it waited there before.
func (w *waits) join(o *op) {
	o.state = opWaiting
	if o.since.IsZero() {
		o.since = o.ten.vol.cfg.Clock()
	}
	w.count++
	o.sess.waits++
	w.listLeases(o)
	if o.lock() != nil {
		l := w.locks[o.ino]
		if l == nil {
			made := w.newLine()
			l = &made
			w.locks[o.ino] = l
		}
		o.enter(l, 0)
		return
	}
	if o.ino == 0 {
		l := w.names[o.name]
		if l == nil {
			made := w.newLine()
			l = &made
			w.names[o.name] = l
		}
		o.enter(l, 0)
		return
	}
	for i, key := range o.keys {
		o.enter(w.makeSpot(o.ino, key).lineOf(o), i)
	}
}

// enter makes o wait in a line; i counts the lines that it is in.
func (o *op) enter(l *line, i int) {
	if i < len(o.waiters) {
		l.PutBack(o.waiters[i])
		return
	}
	if o.ticket == 0 {
		o.ticket = o.ten.waits.tickets.Next()
	}
	o.waiters = append(o.waiters, l.JoinAt(o, o.ticket))
}

// leave takes o out of the lines; the caller gives it its next state.
func (w *waits) leave(o *op) {
	w.count--
	o.sess.waits--
	w.unlist(o)
	w.unlistLeases(o)
	for _, waiter := range o.waiters {
		waiter.Cancel()
	}
	if o.lock() != nil {
		if w.locks[o.ino].Len() == 0 {
			delete(w.locks, o.ino)
		}
		return
	}
	if o.ino == 0 {
		if w.names[o.name].Len() == 0 {
			delete(w.names, o.name)
		}
		return
	}
	for _, key := range o.keys {
		w.tidy(o.ino, key)
	}
}

// each calls f with every waiting op, an op of several keys once for each.
func (w *waits) each(f func(*op)) {
	for _, l := range w.names {
		l.each(f)
	}
	for _, l := range w.locks {
		l.each(f)
	}
	for _, file := range w.files {
		for _, s := range file {
			s.takes.each(f)
			s.puts.each(f)
			s.peeks.each(f)
			s.txs.each(f)
		}
	}
}

// some returns the waiting ops that pick chooses, each once.
func (w *waits) some(pick func(*op) bool) []*op {
	seen := make(map[*op]bool)
	var out []*op
	w.each(func(o *op) {
		if !seen[o] && pick(o) {
			seen[o] = true
			out = append(out, o)
		}
	})
	return out
}

func (w *waits) all() []*op { return w.some(func(*op) bool { return true }) }

func (w *waits) of(s *session) []*op {
	if s.waits == 0 {
		return nil
	}
	return w.some(func(o *op) bool { return o.sess == s })
}

// at returns the ops that wait at a file, or for a name in a directory, but for
// locks: they last as long as the file is open.
func (w *waits) at(ino gearsfs.Ino) []*op {
	var out []*op
	for key, s := range w.files[ino] {
		for _, l := range []*line{&s.takes, &s.puts, &s.peeks, &s.txs} {
			l.each(func(o *op) {
				if o.keys[0] == key { // an op of several keys once
					out = append(out, o)
				}
			})
		}
	}
	for name, l := range w.names {
		if name.dir == ino {
			l.each(func(o *op) { out = append(out, o) })
		}
	}
	return out
}
