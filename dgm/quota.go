package dgm

import (
	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/wire"
)

// inodeBytes is about what an inode with its name takes of the disk.
const inodeBytes = 1 << 10

// usageAt is what statfs shows of an inode: the quota with the least room that it
// counts under, where there is one.
func (v *Volume) usageAt(ino gearsfs.Ino) (gearsfs.Usage, error) {
	room, err := v.machine.QuotaRoom(ino)
	if err != nil {
		return gearsfs.Usage{}, err
	}
	u := v.usage()
	if room.Bytes != 0 {
		u.BytesTotal = max(room.Bytes, room.BytesUsed)
		u.BytesFree = u.BytesTotal - room.BytesUsed
		u.BytesAvail = min(u.BytesFree, u.BytesAvail)
	}
	if room.Inodes != 0 {
		u.Inodes = room.InodesUsed
		u.InodesFree = min(room.Inodes-min(room.Inodes, room.InodesUsed), u.InodesFree)
	}
	return u, nil
}

func (v *Volume) quota(dir gearsfs.Ino) (*wire.Response, error) {
	q, err := v.machine.Quota(dir)
	if err != nil {
		return nil, err
	}
	return &wire.Response{Quota: &wire.Quota{
		LimitBytes: q.Bytes, LimitInodes: q.Inodes, Bytes: q.BytesUsed, Inodes: q.InodesUsed, Counting: q.Counting,
	}}, nil
}

// countQuotas lets the state machine count what a quota was set on or taken from,
// one step behind the other, so that all else comes between.
func (t *tenure) countQuotas() {
	if !t.vol.machine.Counting() {
		return
	}
	cmd := &wire.Command{Checked: true, Op: &wire.Command_CountQuota{CountQuota: &wire.CountQuota{}}}
	t.order(nil, cmd, func(answer *wire.Answer, err error) {
		if err == nil && answer.Count != 0 {
			t.countQuotas()
		}
	})
}
