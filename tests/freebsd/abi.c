/*
 * What kleened-sys declares or takes from the libc crate, compared with FreeBSD's own headers. Nothing runs:
 * it compiles or it does not.
 */
#include <sys/param.h>
#include <sys/acl.h>
#include <sys/event.h>
#include <sys/extattr.h>
#include <sys/fcntl.h>
#include <sys/jail.h>
#include <sys/linker.h>
#include <sys/mount.h>
#include <sys/procctl.h>
#include <sys/rctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysctl.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <login_cap.h>
#include <stddef.h>
#include <unistd.h>

#define SAME(a, b) _Static_assert((a) == (b), #a " is " #b)
#define TYPE(f, t) _Static_assert(__builtin_types_compatible_p(__typeof__(&f), t), #f)

/* kleened/sys/src/jail/mod.rs: jail_set(2), jail_get(2), <sys/jail.h> */
SAME(JAIL_CREATE, 0x01);
SAME(JAIL_UPDATE, 0x02);
TYPE(jail_set, int (*)(struct iovec *, unsigned int, int));
TYPE(jail_get, int (*)(struct iovec *, unsigned int, int));
TYPE(jail_attach, int (*)(int));
TYPE(jail_remove, int (*)(int));
TYPE(kldload, int (*)(const char *));
SAME(CTL_MAXNAME, 24);
SAME(sizeof(struct iovec), 16);

/* kleened/sys/src/jail/param.rs: <sys/sysctl.h>, <sys/jail.h> */
SAME(CTLTYPE, 0xf);
SAME(CTLTYPE_INT, 2);
SAME(CTLTYPE_STRING, 3);
SAME(CTLTYPE_S64, 4);
SAME(CTLTYPE_STRUCT, 5);
SAME(CTLTYPE_UINT, 6);
SAME(CTLTYPE_LONG, 7);
SAME(CTLTYPE_ULONG, 8);
SAME(CTLTYPE_U64, 9);
SAME(CTLFLAG_WR, 0x40000000);
SAME(CTLFLAG_TUN, 0x00080000);
SAME(JAIL_SYS_DISABLE, 0);
SAME(JAIL_SYS_NEW, 1);
SAME(JAIL_SYS_INHERIT, 2);
SAME(sizeof(int), 4);
SAME(sizeof(long), 8);

/* kleened/sys/src/login.rs: login_class(3), login_cap(3), setlogin(2), <login_cap.h> */
SAME(LOGIN_SETPRIORITY, 0x0008);
SAME(LOGIN_SETRESOURCES, 0x0010);
SAME(LOGIN_SETUMASK, 0x0020);
SAME(LOGIN_SETENV, 0x0080);
SAME(LOGIN_SETCPUMASK, 0x0200);
SAME(LOGIN_SETLOGINCLASS, 0x0400);
TYPE(login_getclassbyname, login_cap_t *(*)(const char *, const struct passwd *));
TYPE(login_close, void (*)(login_cap_t *));
TYPE(setusercontext, int (*)(login_cap_t *, const struct passwd *, uid_t, unsigned int));
TYPE(setlogin, int (*)(const char *));

/* kleened/sys/src/nmount.rs: nmount(2), unmount(2), getfsstat(2), fcntl(2), <sys/mount.h>, <sys/user.h> */
SAME(MNT_RDONLY, 1);
SAME(MNT_BYFSID, 0x08000000);
SAME(MNT_NOWAIT, 2);
SAME(sizeof(fsid_t), 8);
SAME(sizeof(((fsid_t *)0)->val[0]), 4);
SAME(sizeof(struct statfs), 2344);
SAME(offsetof(struct statfs, f_flags), 8);
SAME(offsetof(struct statfs, f_fsid), 192);
SAME(offsetof(struct statfs, f_fstypename), 280);
SAME(offsetof(struct statfs, f_mntfromname), 296);
SAME(offsetof(struct statfs, f_mntonname), 1320);
SAME(F_KINFO, 22);
SAME(KINFO_FILE_SIZE, 1392);
SAME(sizeof(struct kinfo_file), 1392);
SAME(offsetof(struct kinfo_file, kf_structsize), 0);
SAME(offsetof(struct kinfo_file, kf_path), 368);
TYPE(nmount, int (*)(struct iovec *, unsigned int, int));
TYPE(unmount, int (*)(const char *, int));

/* kleened/sys/src/process.rs: sysctl(3), close_range(2), <sys/user.h> */
SAME(CTL_KERN, 1);
SAME(KERN_PROC, 14);
SAME(KERN_PROC_PROC, 8);
SAME(KINFO_PROC_SIZE, 1088);
SAME(sizeof(struct kinfo_proc), 1088);
SAME(offsetof(struct kinfo_proc, ki_structsize), 0);
SAME(offsetof(struct kinfo_proc, ki_pid), 72);
SAME(offsetof(struct kinfo_proc, ki_stat), 388);
SAME(offsetof(struct kinfo_proc, ki_jid), 592);
SAME(CLOSE_RANGE_CLOEXEC, 1 << 2);
TYPE(setfib, int (*)(int));

/* kleened/sys/src/watch.rs: kqueue(2), <sys/event.h> */
SAME(EVFILT_PROC, -5);
SAME(EVFILT_TIMER, -7);
SAME(NOTE_EXIT, 0x80000000u);
SAME(EV_ADD, 0x0001);
SAME(EV_ONESHOT, 0x0010);

/* kleened/sys/src/process.rs, and by rustix kleened/src/platform/freebsd/process.rs: procctl(2), <sys/procctl.h> */
SAME(PROC_TRACE_CTL, 7);
SAME(PROC_TRACE_CTL_DISABLE, 2);
SAME(PROC_PDEATHSIG_CTL, 11);

/* kleened/sys/src/socket.rs: bindat(2), connectat(2) */
TYPE(bindat, int (*)(int, int, const struct sockaddr *, socklen_t));
TYPE(connectat, int (*)(int, int, const struct sockaddr *, socklen_t));

/* kleened/sys/src/fs/acl.rs: acl(3), <sys/acl.h> */
SAME(sizeof(acl_t), sizeof(void *));
SAME(sizeof(acl_entry_t), sizeof(void *));
SAME(sizeof(acl_type_t), 4);
SAME(ACL_TYPE_ACCESS, 2);
SAME(ACL_TYPE_DEFAULT, 3);
SAME(ACL_TYPE_NFS4, 4);
SAME(ACL_TEXT_NUMERIC_IDS, 2);
SAME(ACL_FIRST_ENTRY, 0);
TYPE(acl_get_fd_np, acl_t (*)(int, acl_type_t));
TYPE(acl_set_fd_np, int (*)(int, acl_t, acl_type_t));
TYPE(acl_delete_fd_np, int (*)(int, acl_type_t));
TYPE(acl_get_entry, int (*)(acl_t, int, acl_entry_t *));
TYPE(acl_is_trivial_np, int (*)(const acl_t, int *));
TYPE(acl_strip_np, acl_t (*)(const acl_t, int));
TYPE(acl_to_text_np, char *(*)(acl_t, ssize_t *, int));
TYPE(acl_from_text, acl_t (*)(const char *));
TYPE(acl_free, int (*)(void *));
SAME(_PC_ACL_EXTENDED, 59);
SAME(_PC_ACL_NFS4, 64);

/* kleened/sys/src/fs/xattr.rs: extattr_get_fd(2), <sys/extattr.h> */
SAME(EXTATTR_NAMESPACE_USER, 1);
SAME(EXTATTR_NAMESPACE_SYSTEM, 2);
TYPE(extattr_get_fd, ssize_t (*)(int, int, const char *, void *, size_t));
TYPE(extattr_set_fd, ssize_t (*)(int, int, const char *, const void *, size_t));
TYPE(extattr_list_fd, ssize_t (*)(int, int, void *, size_t));
TYPE(extattr_delete_fd, int (*)(int, int, const char *));

/* kleened/sys/src/fs/flags.rs: chflagsat(2), <sys/stat.h> */
SAME(UF_NODUMP | UF_IMMUTABLE | UF_APPEND | UF_OPAQUE | UF_NOUNLINK, 0x1f);
SAME(UF_SYSTEM, 0x80);
SAME(UF_SPARSE, 0x100);
SAME(UF_OFFLINE, 0x200);
SAME(UF_REPARSE, 0x400);
SAME(UF_ARCHIVE, 0x800);
SAME(UF_READONLY, 0x1000);
SAME(UF_HIDDEN, 0x8000);
SAME(SF_ARCHIVED, 0x10000);
SAME(SF_IMMUTABLE, 0x20000);
SAME(SF_APPEND, 0x40000);
SAME(SF_NOUNLINK, 0x100000);
TYPE(chflagsat, int (*)(int, const char *, unsigned long, int));

/* kleened/sys/src/rctl.rs: rctl_add_rule(2), <sys/rctl.h> */
TYPE(rctl_add_rule, int (*)(const char *, size_t, char *, size_t));
TYPE(rctl_remove_rule, int (*)(const char *, size_t, char *, size_t));
