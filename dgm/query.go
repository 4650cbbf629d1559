package dgm

import (
	"cmp"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/replica"
	"github.com/gearsfs/gearsfs/wire"
)

// startQuery reads for a session, asked on a connection. What an API query shows is
// certain; a fast one shows what is applied.
func (t *tenure) startQuery(p *peer, s *session, q *wire.Query, by replica.Vouch, done func(*wire.Response)) canceller {
	v := t.vol
	switch kind := q.Op.(type) {
	case *wire.Query_Peek:
		return t.startPeek(&op{ten: t, sess: s, epoch: s.epoch.Load(), peek: kind.Peek, done: done, path: kind.Peek.Path})
	case *wire.Query_Watch:
		return s.watcher.start(kind.Watch.Id, done)
	case *wire.Query_Sync:
		v.answer(&wire.Response{}, nil, false, by, done)
		return nil
	case *wire.Query_Open:
		t.open(p, s, gearsfs.Ino(kind.Open), q.Made, by, done)
		return nil
	case *wire.Query_Release:
		if t.releasedBy(p, s, []uint64{kind.Release}) {
			done(&wire.Response{})
		} else {
			done(failure(cmp.Or(t.ended(), error(gearsfs.ErrClosed))))
		}
		return nil
	}
	if bulky(q) && !s.local {
		v.owned.Go(func() {
			v.reads <- struct{}{}
			resp, err := t.read(s, q)
			v.answer(resp, err, q.Fast, by, done)
			<-v.reads
		})
		return nil
	}
	resp, err := t.read(s, q)
	v.answer(resp, err, q.Fast, by, done)
	return nil
}

// read answers the queries that neither wait nor change anything.
func (t *tenure) read(s *session, q *wire.Query) (*wire.Response, error) {
	switch op := q.Op.(type) {
	case *wire.Query_ListStreams:
		return t.listStreams(s, op.ListStreams)
	case *wire.Query_Waits:
		return t.listWaits()
	case *wire.Query_Near:
		return t.near(s, op.Near)
	case *wire.Query_Lock:
		lock, mine := t.vol.machine.LockInTheWay(s.id, op.Lock)
		return &wire.Response{Lock: lock, Mine: mine}, nil
	}
	return t.vol.look(s.caller, q)
}

// readsMax bounds the bulky queries that read at once: each may take a MiB and
// more before its connection's limits count it.
const readsMax = 32

// bulky queries read so much that they would hold up a connection's others.
func bulky(q *wire.Query) bool {
	switch q.Op.(type) {
	case *wire.Query_Read, *wire.Query_ReadDir, *wire.Query_ListStreams, *wire.Query_Waits, *wire.Query_Near, *wire.Query_Seek:
		return true
	}
	return false
}

// answer ends a query, or what found nothing, once what it saw is certain: in a
// group of one on disk, in one of several confirmed by a majority; a fast one at
// once. By is the member's that passed it on.
func (v *Volume) answer(resp *wire.Response, err error, fast bool, by replica.Vouch, done func(*wire.Response)) {
	if err != nil {
		resp = failure(err)
	}
	if fast {
		done(resp)
		return
	}
	v.group.WhenVouched(by, func(broken error) {
		if broken != nil {
			resp = failure(broken)
		}
		done(resp)
	})
}

func attrResponse(a *wire.Attr) *wire.Response {
	return &wire.Response{Answer: &wire.Answer{Attr: a}}
}

// readNear answers a query from this node's replica as it is, whether the node leads
// or not. Errors: those of what is asked for, gearsfs.ErrClosed, and
// gearsfs.ErrUnknownOp for what only a session can ask.
func (v *Volume) readNear(who gearsfs.Caller, q *wire.Query) (*wire.Response, error) {
	if !v.enter() {
		return nil, gearsfs.ErrClosed
	}
	defer v.leave()
	return v.look(who, q)
}

// look is readNear for who is inside already.
func (v *Volume) look(who gearsfs.Caller, q *wire.Query) (*wire.Response, error) {
	m := v.machine
	switch op := q.Op.(type) {
	case *wire.Query_Lookup:
		attr, err := m.Lookup(gearsfs.Ino(op.Lookup.Dir), op.Lookup.Name, who)
		return attrResponse(attrToWire(attr)), err
	case *wire.Query_Resolve:
		attr, err := m.Resolve(op.Resolve.Path, op.Resolve.Follow, who)
		return attrResponse(attrToWire(attr)), err
	case *wire.Query_GetAttr:
		attr, err := m.GetAttr(gearsfs.Ino(op.GetAttr))
		return attrResponse(attrToWire(attr)), err
	case *wire.Query_ReadDir:
		return v.readDir(op.ReadDir, who)
	case *wire.Query_Readlink:
		text, err := m.Readlink(gearsfs.Ino(op.Readlink))
		return &wire.Response{Text: text}, err
	case *wire.Query_Parent:
		parent, err := m.Parent(gearsfs.Ino(op.Parent))
		return &wire.Response{Number: uint64(parent)}, err
	case *wire.Query_GetXattr:
		data, err := m.GetXattr(gearsfs.Ino(op.GetXattr.Ino), op.GetXattr.Name, who)
		return &wire.Response{Data: data}, err
	case *wire.Query_ListXattr:
		names, err := m.ListXattr(gearsfs.Ino(op.ListXattr), who)
		return &wire.Response{Names: names}, err
	case *wire.Query_StatFs:
		return &wire.Response{Usage: usageToWire(v.usage())}, nil
	case *wire.Query_StatFsAt:
		u, err := v.usageAt(gearsfs.Ino(op.StatFsAt))
		return &wire.Response{Usage: usageToWire(u)}, err
	case *wire.Query_Quota:
		return v.quota(gearsfs.Ino(op.Quota))
	case *wire.Query_Read:
		r := op.Read
		if r.Length > contentBytesMax {
			return nil, gearsfs.ErrInvalid.Because("a read has at most %d bytes", contentBytesMax)
		}
		data, err := v.payloads.Content(v.busy, who, r, nil)
		return &wire.Response{Data: data}, err
	case *wire.Query_Seek:
		pos, err := m.Seek(gearsfs.Ino(op.Seek.Ino), gearsfs.Pos(op.Seek.Pos), op.Seek.Hole, who)
		return &wire.Response{Number: uint64(pos)}, err
	case *wire.Query_Status:
		return &wire.Response{Status: statusToWire(v.nodeStatus())}, nil
	case *wire.Query_Remotes:
		return v.remotes()
	}
	return nil, gearsfs.ErrUnknownOp
}

func (v *Volume) readDir(r *wire.ReadDir, who gearsfs.Caller) (*wire.Response, error) {
	entries, err := v.machine.ReadDir(gearsfs.Ino(r.Dir), r.After, int(min(r.Max, gearsfs.BatchRecordsMax)), who)
	if err != nil {
		return nil, err
	}
	resp := &wire.Response{Entries: make([]*wire.NamedAttr, len(entries))}
	for i, e := range entries {
		resp.Entries[i] = &wire.NamedAttr{Name: e.Name, Attr: attrToWire(e.Attr)}
	}
	return resp, nil
}

func (t *tenure) listStreams(s *session, l *wire.ListStreams) (*wire.Response, error) {
	if err := t.resolve(s, l.Path, &l.Target); err != nil {
		return nil, err
	}
	if l.Target.Ino == 0 {
		return nil, gearsfs.ErrNotFound
	}
	ino := gearsfs.Ino(l.Target.Ino)
	var infos []gearsfs.StreamInfo
	if l.Only {
		info, err := t.vol.machine.Stream(ino, gearsfs.Key(l.After), s.caller)
		if err != nil {
			return nil, err
		}
		infos = []gearsfs.StreamInfo{info}
	} else {
		var err error
		infos, err = t.vol.machine.ListStreams(ino, gearsfs.Key(l.After), int(min(l.Max, gearsfs.BatchRecordsMax)), s.caller)
		if err != nil {
			return nil, err
		}
	}
	resp := &wire.Response{Streams: make([]*wire.Stream, len(infos))}
	for i, info := range infos {
		t.vol.memory.Describe(ino, &info)
		info.Waiting = t.waitingOn(ino, info.Key)
		resp.Streams[i] = streamToWire(info)
	}
	return resp, nil
}

func (v *Volume) remotes() (*wire.Response, error) {
	remotes, err := v.machine.Remotes()
	if err != nil {
		return nil, err
	}
	resp := &wire.Response{}
	for name, addrs := range remotes {
		resp.Remotes = append(resp.Remotes, &wire.Remote{Name: name, Addrs: addrs})
	}
	return resp, nil
}
