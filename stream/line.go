package stream

import "iter"

// Tickets number those who wait, in the order of their coming, over all lines
// that share them. The zero value is ready.
type Tickets struct{ last uint64 }

// Next draws a ticket: for who may have to wait later, at the place of now.
func (t *Tickets) Next() uint64 {
	t.last++
	return t.last
}

// Line is a waiting line, first come first served. It starts no goroutine and
// wakes nobody itself: Value is whatever its owner wakes a waiter by. A Line,
// its waiters and its Tickets are guarded by their owner's mutex.
type Line[T any] struct {
	tickets *Tickets
	root    Waiter[T] // of a ring: root.next is the oldest
	n       int
}

// Waiter is one who waits, in at most one line at a time.
type Waiter[T any] struct {
	Value      T
	ticket     uint64
	passed     uint32
	line       *Line[T] // nil while it is in none
	prev, next *Waiter[T]
}

// NewLine returns an empty line.
func NewLine[T any](tickets *Tickets) *Line[T] {
	l := &Line[T]{tickets: tickets}
	l.root.prev, l.root.next = &l.root, &l.root
	return l
}

// Join adds a waiter behind all others.
func (l *Line[T]) Join(v T) *Waiter[T] {
	return l.JoinAt(v, l.tickets.Next())
}

// JoinAt adds a waiter at the place that a ticket gives it.
func (l *Line[T]) JoinAt(v T, ticket uint64) *Waiter[T] {
	w := &Waiter[T]{Value: v, ticket: ticket}
	l.PutBack(w)
	return w
}

func (l *Line[T]) insert(w, after *Waiter[T]) {
	w.line = l
	w.prev, w.next = after, after.next
	w.prev.next, w.next.prev = w, w
	l.n++
}

func (l *Line[T]) remove(w *Waiter[T]) {
	w.prev.next, w.next.prev = w.next, w.prev
	w.line, w.prev, w.next = nil, nil, nil
	l.n--
}

// PutBack adds a waiter that is in no line at the place that its ticket gives
// it: it had its turn and found nothing, or it waits for another thing now and
// comes from another line of the same Tickets.
func (l *Line[T]) PutBack(w *Waiter[T]) {
	if w.line != nil {
		panic("stream: the waiter is in a line already")
	}
	after := &l.root
	if last := l.root.prev; last != &l.root && last.ticket < w.ticket {
		after = last // as where one line moves into another
	}
	for after.next != &l.root && after.next.ticket < w.ticket {
		after = after.next
	}
	l.insert(w, after)
}

// Cancel takes a waiter out of the line that it is in. It returns false, and
// does nothing, where it is in none: its turn has come, or it is cancelled
// already.
func (w *Waiter[T]) Cancel() bool {
	if w.line == nil {
		return false
	}
	w.line.remove(w)
	return true
}

// Passed is how often a younger one had its turn while w was waiting.
func (w *Waiter[T]) Passed() uint32 { return w.passed }

// First returns the oldest waiter, nil where nobody waits.
func (l *Line[T]) First() *Waiter[T] {
	if l.n == 0 {
		return nil
	}
	return l.root.next
}

// PopRunnable takes the oldest up to k waiters out of the line for which
// runnable is true, and appends them to dst, oldest first. Those that are not
// stay, and count how many were let past them. runnable must not change the
// line.
func (l *Line[T]) PopRunnable(dst []*Waiter[T], k int, runnable func(*Waiter[T]) bool) []*Waiter[T] {
	start := len(dst)
	for w := l.root.next; w != &l.root && len(dst)-start < k; {
		next := w.next
		if runnable(w) {
			l.remove(w)
			dst = append(dst, w)
		}
		w = next
	}
	younger := dst[start:]
	for w := range l.All() {
		for len(younger) > 0 && younger[0].ticket < w.ticket {
			younger = younger[1:]
		}
		if len(younger) == 0 {
			break
		}
		w.passed += uint32(len(younger))
	}
	return dst
}

// Len is how many wait.
func (l *Line[T]) Len() int { return l.n }

// All walks over those who wait, oldest first. The waiter it stands at may be
// taken out meanwhile.
func (l *Line[T]) All() iter.Seq[*Waiter[T]] {
	return func(yield func(*Waiter[T]) bool) {
		for w := l.root.next; w != &l.root; {
			next := w.next
			if !yield(w) {
				return
			}
			w = next
		}
	}
}
