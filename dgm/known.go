package dgm

import (
	"slices"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm/internal/memory"
	"github.com/gearsfs/gearsfs/wire"
)

// A put whose stream knows all of its ids adds nothing: it needs no room, and is
// answered at once however many wait there for some. One that waits may become
// such a put when another brings its last id. So it is listed under the first id
// that its stream does not know, and looked at again when a command has brought
// that one.
//
// No id is missed: what the state knows is read, and the put listed, with
// tenure.mu held; who has brought an id takes it to look into the list, and is
// applied by then.

// idAt is an id of a stream.
type idAt struct {
	place
	id string // "" for what knows all, but waits for earlier puts of its session
}

// lacksID says which of the ids of records their stream does not know; all is
// false where a record has none.
func (t *tenure) lacksID(at place, records []*wire.NewRecord) (lacks string, all bool) {
	if t.inMemory(at) {
		return t.vol.memory.LacksID(memory.Place{Ino: at.ino, Key: at.key}, records)
	}
	return t.vol.machine.LacksID(at.ino, at.key, records)
}

// addsNothing says whether a stream knows the ids of all records.
func (t *tenure) addsNothing(at place, records []*wire.NewRecord) bool {
	lacks, all := t.lacksID(at, records)
	return all && lacks == ""
}

// tryKnown sends a put to the log that waits for room and needs none, or lists
// it. One that seals goes behind the puts of its session all the same.
func (t *tenure) tryKnown(o *op) {
	p := o.change.Command.GetPut()
	t.mu.Lock()
	if o.state != opWaiting || o.ino == 0 || t.over != nil {
		t.mu.Unlock()
		return
	}
	at := place{o.ino, o.keys[0]}
	lacks, all := t.lacksID(at, p.Records)
	if !all || lacks != "" || p.Seal && (t.earlierWaitsLocked(o) || o.sess.putsBeforeLocked(o)) {
		if all {
			t.waits.list(o, idAt{at, lacks})
		}
		t.mu.Unlock()
		return
	}
	t.waits.leave(o)
	o.state = opProposed
	o.sess.intoLogLocked(o)
	p.Retry = p.Seal // no earlier one waits
	t.mu.Unlock()
	t.submit(o)
}

// list lists a waiting put under an id.
func (w *waits) list(o *op, at idAt) {
	w.unlist(o)
	if w.ids == nil {
		w.ids = make(map[idAt][]*op)
	}
	w.ids[at] = append(w.ids[at], o)
	o.lacks = &at
}

func (w *waits) unlist(o *op) {
	if o.lacks == nil {
		return
	}
	left := slices.DeleteFunc(w.ids[*o.lacks], func(other *op) bool { return other == o })
	if w.ids[*o.lacks] = left; len(left) == 0 {
		delete(w.ids, *o.lacks)
	}
	o.lacks = nil
}

// listedFor are the puts that are listed under the ids that an operation has
// brought.
func (w *waits) listedFor(o *op) (puts []*op) {
	if len(w.ids) == 0 {
		return nil
	}
	brought := func(target *wire.Target, into gearsfs.Ino, key string, records ...*wire.NewRecord) {
		at := place{gearsfs.Ino(target.GetIno()), gearsfs.Key(key)}
		if at.ino == 0 {
			at.ino = into
		}
		for _, r := range records {
			if r.Id != "" {
				puts = append(puts, w.ids[idAt{at, r.Id}]...)
			}
		}
	}
	switch c := o.change.Command.Op.(type) {
	case *wire.Command_Put:
		brought(c.Put.Target, o.into, c.Put.Key, c.Put.Records...)
	case *wire.Command_Update:
		brought(c.Update.Target, 0, c.Update.Key, c.Update.Record)
	case *wire.Command_Transact:
		for _, step := range c.Transact.Steps {
			switch s := step.Op.(type) {
			case *wire.Step_Put:
				brought(s.Put.Target, 0, s.Put.Key, s.Put.Records...)
			case *wire.Step_Update:
				brought(s.Update.Target, 0, s.Update.Key, s.Update.Record)
			}
		}
	}
	return puts
}
