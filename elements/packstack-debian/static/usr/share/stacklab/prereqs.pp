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
    # live migration: no such package in Debian
    Package <| title == 'openstack-nova-migration' |> { noop => true }

    # a container shares its host's kernel: no modules to load, nothing to tune
    Package <| title == 'tuned' |>                { noop => true }
    Service <| title == 'tuned' |>                { noop => true }
    Exec <| title == 'tuned-virtual-host' |>      { noop => true, unless => '/bin/true' }
    Exec <| title == 'load-bridge' or title == 'load-bridge-netfilter' or title == 'sysctl_refresh' |> { noop => true }
}
