package file

import (
	"cmp"
	"errors"

	"github.com/emirpasic/gods/v2/trees/redblacktree"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/persist"
	"github.com/gearsfs/gearsfs/stream"
	"github.com/gearsfs/gearsfs/wire"
)

// node is an inode in use: its attributes and, of a file, the red-black tree
// of those of its streams that are in use. A node that is in the cache is the
// truth about its inode; there is never a second one for the same.
type node struct {
	ino     gearsfs.Ino
	row     wire.InodeRow
	stat    dataStat                                     // as of the last flush, where known
	streams *redblacktree.Tree[gearsfs.Key, *openStream] // nil: none in use
	acls    acls
	dirty   bool // in Machine.dirtyNodes
	gone    bool // its rows are deleted
}

// openStream is a stream in use. Its queue is the truth while it is open; its
// row is written back once per entry where dirty is set.
type openStream struct {
	node    *node
	key     gearsfs.Key
	queue   *stream.Queue
	counted uint64 // bytes of it that are in the sums
	pending bool   // in Machine.uncounted
	extents uint64 // rows with extents, also of records that are gone
	oldest  idMark // the first id to be forgotten, as of the last look
	dirty   bool   // in Machine.dirtyStreams
	gone    bool   // dropped: its rows are deleted
}

type streamKey struct {
	ino gearsfs.Ino
	key gearsfs.Key
}

type dentryKey struct {
	dir  gearsfs.Ino
	name string
}

// dentry is what a name leads to; ino 0: it leads nowhere.
type dentry struct {
	ino  gearsfs.Ino
	mode uint32 // type bits
}

// scratch holds buffers that one step of applying uses and leaves.
type scratch struct {
	key   []byte
	key2  []byte
	value []byte
	row   []byte

	pieces []piece
	runs   []pageRun
	runs2  []pageRun
	data   []byte // of pieces
	block  []byte // a block row that is being made
	soles  soles

	stream wire.StreamRow
	record wire.RecordRow
	out    wire.OutRow
}

// callersError tells an error that is an answer from one of the store.
func callersError(err error) (*gearsfs.Error, bool) {
	e, ok := errors.AsType[*gearsfs.Error](err)
	if !ok || e.Code == gearsfs.ErrDamaged.Code || e.Code == gearsfs.ErrFormat.Code {
		return nil, false
	}
	return e, true
}

// get reads the row at key into the scratch value buffer; it is valid until
// the next get.
func (m *Machine) get(key []byte) (value []byte, ok bool, err error) {
	value, ok, err = m.store.Get(key, m.scratch.value[:0])
	if ok {
		m.scratch.value = value
	}
	return value, ok, err
}

// message is a row of wire/row.proto.
type message interface {
	SizeVT() int
	MarshalToSizedBufferVT([]byte) (int, error)
}

// set puts a row into the open batch.
func (m *Machine) set(key []byte, r message) { m.store.Set(key, m.marshal(r)) }

// add is set of a row that there is not yet.
func (m *Machine) add(key []byte, r message) { m.store.Add(key, m.marshal(r)) }

// marshal encodes a row in the scratch row buffer.
func (m *Machine) marshal(r message) []byte {
	n := r.SizeVT()
	if cap(m.scratch.row) < n {
		m.scratch.row = make([]byte, n+n/2)
	}
	buf := m.scratch.row[:n]
	if _, err := r.MarshalToSizedBufferVT(buf); err != nil {
		panic(err) // only strings that are not UTF-8 or nil rows fail: a bug
	}
	return buf
}

func damaged(table string, err error) error {
	return gearsfs.ErrDamaged.Because("%s row: %v", table, err)
}

// node returns the inode ino; nil where there is none.
func (m *Machine) node(ino gearsfs.Ino) (*node, error) {
	if n, ok := m.nodes.get(ino); ok {
		return n, nil
	}
	m.scratch.key = persist.AppendInodeKey(m.scratch.key[:0], ino)
	value, ok, err := m.get(m.scratch.key)
	if err != nil || !ok {
		return nil, err
	}
	n := &node{ino: ino}
	if err := n.row.UnmarshalVT(value); err != nil {
		return nil, damaged("inode", err)
	}
	if err := n.countStreams(m.store); err != nil {
		return nil, err
	}
	if err := n.loadACLs(m.store); err != nil {
		return nil, err
	}
	m.nodes.put(ino, n)
	return n, nil
}

// countStreams counts the bytes of a file whose row is older than that count.
func (n *node) countStreams(r Reader) error {
	if n.row.Counted || n.row.Streams == 0 {
		return nil
	}
	lo, hi := persist.FileRange(persist.TableStream, n.ino)
	err := scan(r, lo, hi, func(_, value []byte) error {
		var row wire.StreamRow
		if err := row.UnmarshalVT(value); err != nil {
			return damaged("stream", err)
		}
		n.row.Bytes += row.Bytes
		return nil
	})
	n.row.Counted = true
	return err
}

// dirtyNode marks n's attributes as changed.
func (m *Machine) dirtyNode(n *node) {
	if !n.dirty {
		n.dirty = true
		m.dirtyNodes = append(m.dirtyNodes, n)
	}
}

func (m *Machine) flushNode(n *node) {
	n.dirty = false
	if n.gone {
		return
	}
	m.scratch.key = persist.AppendInodeKey(m.scratch.key[:0], n.ino)
	m.set(m.scratch.key, &n.row)
}

// stream returns n's stream key; nil where it does not exist. n must be a
// regular file.
func (m *Machine) stream(n *node, key gearsfs.Key) (*openStream, error) {
	if n.streams != nil {
		if s, ok := n.streams.Get(key); ok {
			m.streams.get(streamKey{n.ino, key}) // keeps it in the cache
			return s, nil
		}
	}
	if n.row.Streams == 0 {
		return nil, nil
	}
	m.scratch.key = persist.AppendStreamKey(m.scratch.key[:0], n.ino, key)
	value, ok, err := m.get(m.scratch.key)
	if err != nil || !ok {
		return nil, err
	}
	var row wire.StreamRow
	if err := row.UnmarshalVT(value); err != nil {
		return nil, damaged("stream", err)
	}
	s := &openStream{node: n, key: key, counted: row.Bytes, extents: row.Extents}
	if s.queue, err = stream.NewQueue(stateOf(&row), m.rowsOf(s), m.windows); err != nil {
		return nil, err
	}
	m.open(s)
	return s, nil
}

// makeStream adds an empty stream, which must not exist, to n.
func (m *Machine) makeStream(n *node, key gearsfs.Key) *openStream {
	s := &openStream{node: n, key: key}
	queue, err := stream.NewQueue(stream.NewState(), m.rowsOf(s), m.windows)
	if err != nil {
		panic(err) // it has no rows to read
	}
	s.queue = queue
	m.open(s)
	m.dirtyStream(s)
	n.row.Streams++
	n.row.Counted = true
	m.dirtyNode(n)
	return s
}

func (m *Machine) open(s *openStream) {
	if s.node.streams == nil {
		s.node.streams = redblacktree.NewWith[gearsfs.Key, *openStream](cmp.Compare[gearsfs.Key])
	}
	s.node.streams.Put(s.key, s)
	m.streams.put(streamKey{s.node.ino, s.key}, s)
}

// close takes a stream out of the tree of those in use; it must be clean, or
// gone.
func (m *Machine) close(s *openStream) {
	s.node.streams.Remove(s.key)
	if s.node.streams.Empty() {
		s.node.streams = nil
	}
	m.streams.drop(streamKey{s.node.ino, s.key})
}

func (m *Machine) dirtyStream(s *openStream) {
	if !s.pending {
		s.pending = true
		m.uncounted = append(m.uncounted, s)
	}
	if !s.dirty {
		s.dirty = true
		m.dirtyStreams = append(m.dirtyStreams, s)
	}
}

// count keeps the sums of the bytes of streams: the volume's, the file's and
// those of the quotas that it counts under.
func (m *Machine) count(s *openStream, bytes uint64) {
	if bytes == s.counted {
		return
	}
	if bytes < s.counted {
		m.freed.Add(s.counted - bytes)
	}
	more := bytes - s.counted // or less: sums wrap around
	s.counted = bytes
	m.volume.Bytes += more
	s.node.row.Bytes += more
	m.dirtyNode(s.node)
	m.charge(s.node.row.Quota, more, 0)
}

// countBytes counts what commands have changed, so that the next one sees it.
func (m *Machine) countBytes() {
	for i, s := range m.uncounted {
		m.uncounted[i] = nil
		s.pending = false
		if !s.gone {
			m.count(s, s.queue.State().Bytes)
		}
	}
	m.uncounted = m.uncounted[:0]
}

func (m *Machine) flushStream(s *openStream) {
	if !s.gone {
		s.queue.Clean() // the answers of all takes are stored by now
	}
	s.dirty = false // Clean may have made it so
	if s.gone {
		return
	}
	err := m.watchAge(s)
	if err == nil {
		err = m.watchIDs(s)
	}
	if err != nil {
		m.refuse(err)
		return
	}
	state := s.queue.State()
	m.count(s, state.Bytes)
	if s.key == gearsfs.DataKey {
		s.node.stat = statOf(state, s.extents)
	}
	fillRow(&m.scratch.stream, state)
	m.scratch.stream.Extents = s.extents
	m.scratch.key = persist.AppendStreamKey(m.scratch.key[:0], s.node.ino, s.key)
	m.set(m.scratch.key, &m.scratch.stream)
}

// shrinkCaches makes the caches' bounds hold; everything is clean.
func (m *Machine) shrinkCaches() {
	m.streams.shrink(func(_ streamKey, s *openStream) {
		s.queue.DropWindow()
		s.node.streams.Remove(s.key)
		if s.node.streams.Empty() {
			s.node.streams = nil
		}
	})
	m.nodes.shrink(m.forgetNode)
	m.dentries.shrink()
}

// forgetNode closes the streams of a node that leaves the cache.
func (m *Machine) forgetNode(_ gearsfs.Ino, n *node) {
	if n.streams == nil {
		return
	}
	for _, s := range n.streams.Values() {
		s.queue.DropWindow()
		m.streams.drop(streamKey{n.ino, s.key})
	}
	n.streams = nil
}
