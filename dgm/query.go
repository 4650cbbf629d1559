package dgm

import (
	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/wire"
)

// startQuery reads. What an API query shows is on disk first; a fast one shows
// what is applied.
func (v *Volume) startQuery(s *session, q *wire.Query, done func(*wire.Response)) canceller {
	switch kind := q.Op.(type) {
	case *wire.Query_Peek:
		return v.startPeek(&op{vol: v, sess: s, epoch: s.epoch.Load(), peek: kind.Peek, done: done, path: kind.Peek.Path})
	case *wire.Query_Watch:
		return v.startWatch(s, kind.Watch.Id, done)
	case *wire.Query_Sync:
		v.answer(&wire.Response{}, nil, false, done)
		return nil
	case *wire.Query_Open:
		ino := gearsfs.Ino(kind.Open)
		if !v.opened(s, ino, func() { v.finishOpen(s, ino, done) }) {
			done(failure(gearsfs.ErrClosed))
		}
		return nil
	case *wire.Query_Release:
		v.released(s, gearsfs.Ino(kind.Release))
		done(&wire.Response{})
		return nil
	}
	if bulky(q) && !s.local {
		v.owned.Go(func() {
			v.reads <- struct{}{}
			resp, err := v.read(s, q)
			v.answer(resp, err, q.Fast, done)
			<-v.reads
		})
		return nil
	}
	resp, err := v.read(s, q)
	v.answer(resp, err, q.Fast, done)
	return nil
}

// readsMax bounds the bulky queries that read at once: each may take a MiB and
// more before its connection's limits count it.
const readsMax = 32

// bulky queries read so much that they would hold up a connection's others.
func bulky(q *wire.Query) bool {
	switch q.Op.(type) {
	case *wire.Query_Read, *wire.Query_ReadDir, *wire.Query_ListStreams, *wire.Query_Waits, *wire.Query_Seek:
		return true
	}
	return false
}

// answer ends a query, once what it saw is on disk unless it is fast.
func (v *Volume) answer(resp *wire.Response, err error, fast bool, done func(*wire.Response)) {
	if err != nil {
		resp = failure(err)
	}
	if fast {
		done(resp)
		return
	}
	v.group.WhenCertain(func(broken error) {
		if broken != nil {
			resp = failure(broken)
		}
		done(resp)
	})
}

func (v *Volume) finishOpen(s *session, ino gearsfs.Ino, done func(*wire.Response)) {
	if !v.enter() { // it has waited for an unlink
		done(failure(gearsfs.ErrClosed))
		return
	}
	defer v.leave()
	attr, err := v.machine.GetAttr(ino)
	if err != nil {
		v.released(s, ino)
		done(failure(gearsfs.ErrStale))
		return
	}
	done(attrResponse(attrToWire(attr)))
}

func attrResponse(a *wire.Attr) *wire.Response {
	return &wire.Response{Answer: &wire.Answer{Attr: a}}
}

// read answers the queries that neither wait nor change anything.
func (v *Volume) read(s *session, q *wire.Query) (*wire.Response, error) {
	m, who := v.machine, s.caller
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
	case *wire.Query_Read:
		r := op.Read
		if r.Length > contentBytesMax {
			return nil, gearsfs.ErrInvalid.Because("a read has at most %d bytes", contentBytesMax)
		}
		data, err := m.Read(gearsfs.Ino(r.Ino), gearsfs.Pos(r.Pos), int(r.Length), who)
		return &wire.Response{Data: data}, err
	case *wire.Query_Seek:
		pos, err := m.Seek(gearsfs.Ino(op.Seek.Ino), gearsfs.Pos(op.Seek.Pos), op.Seek.Hole, who)
		return &wire.Response{Number: uint64(pos)}, err
	case *wire.Query_ListStreams:
		return v.listStreams(s, op.ListStreams)
	case *wire.Query_Status:
		return &wire.Response{Status: statusToWire(v.status())}, nil
	case *wire.Query_Waits:
		return v.listWaits()
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

func (v *Volume) listStreams(s *session, l *wire.ListStreams) (*wire.Response, error) {
	if err := v.resolve(s, l.Path, &l.Target); err != nil {
		return nil, err
	}
	if l.Target.Ino == 0 {
		return nil, gearsfs.ErrNotFound
	}
	ino := gearsfs.Ino(l.Target.Ino)
	var infos []gearsfs.StreamInfo
	if l.Only {
		info, err := v.machine.Stream(ino, gearsfs.Key(l.After), s.caller)
		if err != nil {
			return nil, err
		}
		infos = []gearsfs.StreamInfo{info}
	} else {
		var err error
		infos, err = v.machine.ListStreams(ino, gearsfs.Key(l.After), int(min(l.Max, gearsfs.BatchRecordsMax)), s.caller)
		if err != nil {
			return nil, err
		}
	}
	resp := &wire.Response{Streams: make([]*wire.Stream, len(infos))}
	for i, info := range infos {
		info.Waiting = v.waitingOn(ino, info.Key)
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
