import java.nio.file.Path;
import java.util.Map;
import org.elasticsearch.common.logging.LogConfigurator;
import org.elasticsearch.common.settings.Settings;
import org.elasticsearch.env.Environment;
import org.elasticsearch.node.Node;
import org.elasticsearch.plugins.PluginsLoader;

/**
 * Runs one Elasticsearch node until SIGTERM, without the scripts of a distribution. Arguments: its home, with the
 * folders config, modules and plugins, then settings as NAME=VALUE. Says "node started" when it takes requests, and
 * "node closed" at its end.
 */
public final class ElasticsearchLauncher {
    private ElasticsearchLauncher() {}

    public static void main(String[] arguments) {
        try {
            run(arguments);
        } catch (Throwable failure) {
            failure.printStackTrace();
            System.exit(1); // what the node started so far would keep the process alive
        }
    }

    private static void run(String[] arguments) throws Exception {
        LogConfigurator.registerErrorListener();
        LogConfigurator.configureESLogging();
        Settings.Builder settings = Settings.builder().put("path.home", arguments[0]);
        for (int k = 1; k < arguments.length; k++) {
            int equals = arguments[k].indexOf('=');
            settings.put(arguments[k].substring(0, equals), arguments[k].substring(equals + 1));
        }
        Environment environment = new Environment(settings.build(), Path.of(arguments[0], "config"));
        PluginsLoader loader = PluginsLoader.createPluginsLoader(
            PluginsLoader.loadModulesBundles(environment.modulesDir()),
            PluginsLoader.loadPluginsBundles(environment.pluginsDir()),
            Map.of()
        );
        Node node = new Node(environment, loader);
        Runtime.getRuntime().addShutdownHook(new Thread(() -> close(node)));
        node.start();
        System.out.println("node started");
        Thread.currentThread().join();
    }

    private static void close(Node node) {
        try {
            node.close();
            System.out.println("node closed"); // of what it logs itself, the logger's own end may swallow the rest
        } catch (Exception failure) {
            failure.printStackTrace();
        }
    }
}
