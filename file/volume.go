package file

import (
	"strings"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/persist"
	"github.com/gearsfs/gearsfs/wire"
)

// loadVolume reads the volume row; without one the volume waits for Init.
func (m *Machine) loadVolume() error {
	there, err := readVolumeRow(m.store, &m.volume)
	if there && m.volume.Format != 0 {
		m.volume.Format = formatVersion // in the tables with the next entry
	}
	m.doomed.Store(m.volume.Doomed > 0)
	return err
}

func (m *Machine) flushVolume() {
	m.doomed.Store(m.volume.Doomed > 0)
	m.set(persist.VolumeKey(), &m.volume)
}

// applyInit makes the volume's first directory.
func (m *Machine) applyInit(c *context, op *wire.Init) *wire.Answer {
	m.volume.Format = formatVersion
	m.volume.Id = op.Id
	m.volume.Name = op.Name
	m.volume.NextIno = uint64(gearsfs.RootIno) + 1
	m.volume.Inodes = 1
	m.volume.NextFence = 1
	root := &node{ino: gearsfs.RootIno, row: wire.InodeRow{
		Mode: modeDir | 0o755, Nlink: 2, Uid: op.Uid, Gid: op.Gid,
		Atime: c.now, Mtime: c.now, Ctime: c.now, Parent: uint64(gearsfs.RootIno),
	}}
	m.nodes.put(root.ino, root)
	m.dirtyNode(root)
	return &wire.Answer{Ino: uint64(root.ino)}
}

// Bounds of what a named remote may be.
const (
	remoteNameMax  = gearsfs.NameBytesMax
	remoteAddrsMax = 4 << 10
)

// applySetRemote names another node's addresses; "" removes the name. Only the
// volume's owner may, who is the root directory's.
func (m *Machine) applySetRemote(c *context, op *wire.SetRemote) *wire.Answer {
	root, err := m.node(gearsfs.RootIno)
	switch {
	case err != nil:
	case op.Name == "" || strings.ContainsAny(op.Name, "/:\x00"):
		err = gearsfs.ErrInvalid.Because("%q is not a name for a remote", op.Name)
	case len(op.Name) > remoteNameMax:
		err = gearsfs.ErrNameTooLong
	case len(op.Addrs) > remoteAddrsMax:
		err = gearsfs.ErrTooBig.Because("a remote's addresses have at most %d bytes", remoteAddrsMax)
	case c.caller.UID != 0 && c.caller.UID != root.row.Uid:
		err = gearsfs.ErrPermission
	}
	if err != nil {
		return m.refuse(err)
	}
	if op.Addrs == "" {
		m.store.Delete(persist.RemoteKey(op.Name))
	} else {
		m.set(persist.RemoteKey(op.Name), &wire.RemoteRow{Addrs: op.Addrs})
	}
	return &wire.Answer{}
}

// Remotes returns the named remotes and their addresses.
func (m *Machine) Remotes() (map[string]string, error) {
	r := m.read()
	defer r.close()
	remotes := make(map[string]string)
	lo, hi := persist.TableRange(persist.TableRemote)
	err := scan(r.view, lo, hi, func(key, value []byte) error {
		name, err := persist.ParseRemoteKey(key)
		if err != nil {
			return err
		}
		var row wire.RemoteRow
		if err := row.UnmarshalVT(value); err != nil {
			return damaged("remote", err)
		}
		remotes[name] = row.Addrs
		return nil
	})
	return remotes, err
}

// QuotaRoom is what the quotas that an inode counts under leave: of those with a
// limit the one with the least room, for bytes and for inodes.
type QuotaRoom struct {
	Bytes, BytesUsed   uint64 // the limit, and what is in use; 0 is no limit
	Inodes, InodesUsed uint64
}

// QuotaRoom returns what room an inode has to grow. Errors: gearsfs.ErrStale.
func (m *Machine) QuotaRoom(ino gearsfs.Ino) (room QuotaRoom, err error) {
	n, err := m.inode(ino)
	if err != nil {
		return room, err
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	for q := m.quotas.all[gearsfs.Ino(n.quota)]; q != nil; q = m.quotas.all[gearsfs.Ino(q.row.Outer)] {
		row := &q.row
		if row.LimitBytes != 0 && (room.Bytes == 0 || left(row.LimitBytes, row.Bytes) < left(room.Bytes, room.BytesUsed)) {
			room.Bytes, room.BytesUsed = row.LimitBytes, row.Bytes
		}
		if row.LimitInodes != 0 && (room.Inodes == 0 || left(row.LimitInodes, row.Inodes) < left(room.Inodes, room.InodesUsed)) {
			room.Inodes, room.InodesUsed = row.LimitInodes, row.Inodes
		}
	}
	return room, nil
}

// Quota returns the quota that is set on a directory. Errors:
// gearsfs.ErrNotFound where none is, ErrStale, ErrNotDir.
func (m *Machine) Quota(dir gearsfs.Ino) (gearsfs.Quota, error) {
	n, err := m.inode(dir)
	if err == nil && !isDir(n.attr.Mode) {
		err = gearsfs.ErrNotDir
	}
	if err != nil {
		return gearsfs.Quota{}, err
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	q := m.quotas.all[dir]
	if q == nil || q.row.Removed {
		return gearsfs.Quota{}, gearsfs.ErrNotFound.Because("no quota is set on the directory")
	}
	return gearsfs.Quota{
		Bytes: q.row.LimitBytes, Inodes: q.row.LimitInodes, BytesUsed: q.row.Bytes, InodesUsed: q.row.Inodes,
		Counting: m.volume.Counting == uint64(dir),
	}, nil
}

// Counting reports whether CountQuota has something to do.
func (m *Machine) Counting() bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.volume.Counting != 0
}

// Usage returns how many inodes there are that can be reached; the bytes are the disk's to tell.
func (m *Machine) Usage() gearsfs.Usage {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return gearsfs.Usage{Inodes: m.volume.Inodes - m.volume.Doomed}
}

// Freed returns by how many bytes streams have got smaller since New: what the
// store can give back of its space.
func (m *Machine) Freed() uint64 { return m.freed.Load() }

// Initialised reports whether the volume exists: Init was applied.
func (m *Machine) Initialised() bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.volume.Format != 0
}

// VolumeID returns the volume's id, which must not be changed, nil before Init.
func (m *Machine) VolumeID() []byte {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.volume.Id
}

// VolumeName returns the volume's name, "" before Init.
func (m *Machine) VolumeName() string {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.volume.Name
}

// IsOrphan reports whether an inode is only there because it is open. It
// checks no permission; an inode that does not exist is none.
func (m *Machine) IsOrphan(ino gearsfs.Ino) bool {
	m.mu.RLock()
	n, ok := m.nodes.get(ino)
	if ok {
		defer m.mu.RUnlock()
		return n.row.Orphan
	}
	r := m.readLocked()
	m.mu.RUnlock()
	defer r.close()
	_, ok, err := r.view.Get(persist.OrphanKey(ino), r.buf[:0])
	return err == nil && ok
}
