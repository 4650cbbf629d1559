package file

import (
	"github.com/gearsfs/gearsfs/gears"
	"github.com/gearsfs/gearsfs/persist"
	"github.com/gearsfs/gearsfs/wire"
)

// loadVolume reads the volume row; without one the volume waits for Init.
func (m *Machine) loadVolume() error {
	value, ok, err := m.get(persist.VolumeKey())
	if err != nil || !ok {
		return err
	}
	if err := m.volume.UnmarshalVT(value); err != nil {
		return damaged("volume", err)
	}
	if f := m.volume.Format; f != 0 && f != formatVersion {
		return gears.ErrFormat.Because("the state has format version %d, this program knows %d", f, formatVersion)
	}
	return nil
}

func (m *Machine) flushVolume() { m.set(persist.VolumeKey(), &m.volume) }

// applyInit makes the volume's first directory.
func (m *Machine) applyInit(c *context, op *wire.Init) *wire.Answer {
	m.volume.Format = formatVersion
	m.volume.Id = op.Id
	m.volume.Name = op.Name
	m.volume.NextIno = uint64(gears.RootIno) + 1
	m.volume.Inodes = 1
	m.volume.NextFence = 1
	root := &node{ino: gears.RootIno, row: wire.InodeRow{
		Mode: modeDir | 0o755, Nlink: 2, Uid: op.Uid, Gid: op.Gid,
		Atime: c.now, Mtime: c.now, Ctime: c.now, Parent: uint64(gears.RootIno),
	}}
	m.nodes.put(root.ino, root)
	m.dirtyNode(root)
	return &wire.Answer{Ino: uint64(root.ino)}
}

func (m *Machine) applySetRemote(c *context, op *wire.SetRemote) *wire.Answer {
	return m.refuse(gears.ErrUnsupported)
}
