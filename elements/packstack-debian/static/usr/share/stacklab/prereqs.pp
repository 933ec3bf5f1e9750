# Packstack's class of the same name installs openstack-selinux, sos and audit: RPM
# systems only. This one gives the resources of Packstack's manifests their Debian
# names instead.
class packstack::prereqs ()
{
    Package <| title == 'mysql-server' |>        { name => 'galera-4' }
    Package <| title == 'rabbitmq-server' |>     { provider => 'apt' }
    Package <| title == 'libapache2-mod-wsgi' |> { name => 'libapache2-mod-wsgi-py3' }
    Package <| title == 'cronie' |>              { name => 'cron' }
    Service <| title == 'crond' |>               { name => 'cron' }
    Service <| title == 'sshd' |>                { name => 'ssh' }

    # asked for by file name; the clients are in the image
    Package <| title == '/usr/bin/openstack' or title == '/usr/bin/nova'
            or title == '/usr/bin/glance' or title == '/usr/bin/cinder' |> { noop => true }
    # live migration, sensors of bare metal: no such package in Debian, or none that a lab needs
    Package <| title == 'openstack-nova-migration' or title == 'openstack-ceilometer-ipmi' |> { noop => true }
    # mount.nfs of a lab mounts with it
    Package <| title == 'nfs-utils' |>           { name => 'sshfs' }
    # Cinder's NFS driver refuses to start with both snapshots (Packstack's choice) and these (its default)
    Cinder_config <| title == 'nfs/nas_secure_file_operations' or title == 'nfs/nas_secure_file_permissions' |> {
      value => 'false',
    }
    # Debian's Cinder fails at each notification since a security update of oslo.messaging hands it
    # contexts without read_deleted, and with it what is notified of
    Cinder_config <| title == 'oslo_messaging_notifications/driver' |> { value => 'noop' }
    # panels of the dashboard
    Package <| title == 'openstack-heat-ui' |>   { name => 'python3-heat-dashboard' }
    Package <| title == 'openstack-magnum-ui' |> { name => 'python3-magnum-ui' }

    # a container shares its host's kernel: no modules to load, nothing to tune
    Package <| title == 'tuned' |>                { noop => true }
    Service <| title == 'tuned' |>                { noop => true }
    Exec <| title == 'tuned-virtual-host' |>      { noop => true, unless => '/bin/true' }
    Exec <| title == 'load-bridge' or title == 'load-bridge-netfilter' or title == 'sysctl_refresh' |> { noop => true }
}
